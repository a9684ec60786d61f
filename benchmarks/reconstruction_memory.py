"""The recipe at its full size, coils and 3 slices of 640×368 and 416×368: what a step and a reconstruction take.

python benchmarks/reconstruction_memory.py [--coils 15 30] [--sizes 640x368 416x368]

Each way runs in a process for itself. The peak is that of the process, weights and torch included; memory does not
depend on what else the machine does, and no times are taken.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import product

import torch

from measuring import RESULTS, report
from memory import forget_peak, in_fresh_process, peak_mb
from voxelwave.unrolled.promptmr_plus import PromptMRPlus
from voxelwave.unrolled.sensitivity import SensitivityShape

SLICES, GB = 3, 1000
# "step" is forward, backward and AdamW; "saving" checkpoints each cascade and goes coil by coil for the maps;
# "reconstruct_by_coil" has transforms and maps of one coil in memory at a time.
WAYS = ("reconstruct", "reconstruct_by_coil", "step_saving", "step_per_coil")
LIMIT_MB = 8 * GB


def measure(way: str, coils: int, size: str) -> dict[str, float]:
    """Return the peak of one way in MB."""
    torch.manual_seed(0)
    network = PromptMRPlus(sensitivity=replace(SensitivityShape(), per_coil=True), checkpointing=way == "step_saving")
    height, width = map(int, size.split("x"))
    lines = torch.arange(width)
    sampled = ((lines % 4 == 0) | ((lines - width // 2).abs() <= 14))[None]
    kspace = torch.randn(1, SLICES, coils, height, width, dtype=torch.complex64) * sampled
    forget_peak()
    if way.startswith("reconstruct"):
        network.coils_at_once = 1 if way == "reconstruct_by_coil" else None
        with torch.no_grad():
            network(kspace, sampled)
    else:
        optimizer = torch.optim.AdamW(network.parameters())
        network(kspace, sampled).square().mean().backward()
        optimizer.step()
    return {"peak_mb": peak_mb()}


def main() -> None:
    """Measure every way in a fresh process, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coils", type=int, nargs="+", default=[15, 30])
    parser.add_argument("--sizes", nargs="+", default=["640x368", "416x368"])
    parser.add_argument("--ways", nargs="+", default=WAYS[:3], choices=WAYS)
    parser.add_argument("--task")
    parser.add_argument("--size")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(arguments.task, arguments.coils[0], arguments.size)))
        return
    # What was measured before and is not asked for now stays.
    before = RESULTS / "reconstruction_memory.json"
    found = json.loads(before.read_text())["peaks"] if before.exists() else {}
    for coils, size, way in product(arguments.coils, arguments.sizes, arguments.ways):
        of = found.setdefault(f"{coils} coils", {}).setdefault(size, {})
        of[way] = in_fresh_process(__file__, way, "--coils", coils, "--size", size)
    report("reconstruction_memory", {"limit_mb": LIMIT_MB, "peaks": found})


if __name__ == "__main__":
    main()
