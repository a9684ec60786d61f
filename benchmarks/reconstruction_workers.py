"""The twelve blocks of the recipe on tiny data: whether 200 steps have the same bits with 0, 1 and 4 workers.

python benchmarks/reconstruction_workers.py [--volumes 7]

Every block is trained by itself, with a network of two small cascades, once for each number of workers, and once more
with deterministic kernels. What a determinism of the kernels costs is the median of pairs of such runs without workers,
in processor time, so that the machine may be busy. Every finished block is a line of
results/reconstruction_workers.jsonl; called again, the study goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch

from measuring import RESULTS, report
from voxelwave.data.kspace.synthesis import synthesize_kspace
from voxelwave.data.kspace.writing import write_challenge
from voxelwave.engine.run_log import is_time, read_metrics
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.config import check_reconstruction_config
from voxelwave.jobs.reconstruct.plan import load_plan
from voxelwave.jobs.reconstruct.train import train_reconstruction
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.phantoms2d import draw_phantoms
from voxelwave.physics.samplings.equispaced import EquispacedLines

CELLS = RESULTS / "reconstruction_workers.jsonl"
RECIPE = Path(__file__).parents[1] / "configs" / "reconstruct" / "recipe.yaml"
SLICES, COILS, SIDE, WORKERS = 4, 3, 64, (0, 1, 4)
LEVEL = {"prompt_channels": 2, "prompt_size": 4, "encoder_blocks": 1, "decoder_blocks": 1}
UNET = {"first_channels": 4, "levels": [{"channels": 4, **LEVEL}, {"channels": 6, **LEVEL}]}
MODEL = {
    "name": "promptmr_plus",
    "num_cascades": 2,
    "unet": UNET,
    "sensitivity": {"unet": UNET, "per_coil": False},
    "checkpointing": True,
}


def write_files(folder: Path, volumes: int) -> None:
    """Write volumes in the unit of the challenge."""
    sampled = EquispacedLines(offset="origin")((SIDE, SIDE), torch_generator(0))[0]
    for number in range(volumes):
        drawn = draw_phantoms([torch_generator(number, each) for each in range(SLICES)], size=SIDE)
        kspace = synthesize_kspace(1e-3 * drawn, num_coils=COILS, seed=number)
        write_challenge(folder, f"volume{number}.h5", kspace, sampled, size=(SIDE - 4, SIDE - 4))


def records(folder: Path, specialist: str, block: int, *, workers: int, deterministic: bool) -> list[dict[str, Any]]:
    """Train a block, and return its records without times, and last what processor time this process took."""
    raw = load_plan(RECIPE).specialists[specialist].model_dump(mode="json")
    name = f"{specialist} {block} {workers} {deterministic}"
    raw["run"] |= {"name": name.replace(" ", "_"), "out_dir": str(folder / "runs"), "tensorboard": False}
    raw["data"] |= {"files": str(folder / "files"), "readout_rows": SIDE - 2, "num_workers": workers}
    raw["model"] = MODEL
    raw["blocks"] = [raw["blocks"][block - 1] | {"zero_at_epoch": None}]
    raw["training"] |= {"device": "cpu", "deterministic": deterministic, "checkpoint_every_epochs": 0}
    config = check_reconstruction_config(raw)
    began = time.process_time()
    train_reconstruction(config, console=Console(quiet=True))
    duration = time.process_time() - began
    found = read_metrics(config.run_folder() / "metrics.jsonl")
    kept = [{key: value for key, value in record.items() if not is_time(key)} for record in found]
    return [*kept, {"duration_s": duration}]


def compare(folder: Path, specialist: str, block: int) -> dict[str, Any]:
    """Return what became of one block."""
    plain = [records(folder, specialist, block, workers=one, deterministic=False) for one in WORKERS]
    exact = records(folder, specialist, block, workers=0, deterministic=True)
    return {
        "specialist": specialist,
        "block": block,
        "steps": len(exact) - 1,
        "equal_bits": all(of[:-1] == plain[0][:-1] for of in (*plain, exact)),
        "deterministic_over_plain": round(exact[-1]["duration_s"] / plain[0][-1]["duration_s"], 3),
    }


def read_cells() -> list[dict[str, Any]]:
    """Return the blocks that are done."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


def main() -> None:
    """Train the blocks that are not done yet, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked = list(product(load_plan(RECIPE).specialists, (1, 2, 3)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder / "files", arguments.volumes)
        done = {(cell["specialist"], cell["block"]) for cell in read_cells()}
        for one in asked:
            if one not in done:
                cell = compare(folder, *one)
                print(cell, flush=True)
                with CELLS.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(cell) + "\n")
    cells = read_cells()
    report(
        "reconstruction_workers",
        {
            "steps": sorted({cell["steps"] for cell in cells}),
            "workers": WORKERS,
            "blocks": len(cells),
            "all_equal": all(cell["equal_bits"] for cell in cells),
            "deterministic_over_plain": statistics.median(cell["deterministic_over_plain"] for cell in cells),
        },
    )


if __name__ == "__main__":
    main()
