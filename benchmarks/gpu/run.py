"""All that is to be measured on a GPU, in one go: tests, the production step, and objectives side by side.

bash benchmarks/gpu/run.sh [OUT] [--tiny] [--parts tests,step,…] [--objectives current,…] [--train-s 120]

All of it takes about 20 minutes; --parts and --objectives do it in pieces. --tiny is a smoke test for the CPU.
Each part runs in a process of its own with a time limit of its own; what it left is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from reporting import table
from voxelwave.jobs.common.config_file import set_key

ROOT = Path(__file__).parents[2]

PYTHON = sys.executable
PARTS = ("tests", "step", "reconstruction", "objectives")
PLAIN = {"model.backbone.wavelet_levels": 0}
# Two views that hide 60 % each would share but 16 % of their places.
OF_PAIRS = {**PLAIN, "masking.global_ratio": 0.25}
# What each sets. On small networks the second had better features than the first (docs/transfer.md).
OBJECTIVES: dict[str, dict[str, Any]] = {
    "current": {},
    "current_plain_without_contrast": {**PLAIN, "loss.contrastive_weight": 0.0},
    "cross_contrast": {"objective.name": "cross_contrast", **OF_PAIRS},
    "supervised_synthesis": {"objective.name": "supervised_synthesis", **OF_PAIRS},
}
CLASSES = "grey=6,white=7,deep=8,ventricles=9,cerebellum=10,stem=11"


class Size:
    """How large everything is."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.heads, self.probed, self.side = (3, 4, 32) if tiny else (96, 24, 96)
        self.crop, self.spacing_mm = ([16] * 3, 12.0) if tiny else ([64] * 3, 2.0)
        self.backbone = {"name": "waveformer", "patch_size": 4 if tiny else 8}
        self.backbone |= dict(
            zip(("embed_dim", "depth", "num_heads"), (24, 2, 2) if tiny else (384, 8, 6), strict=True)
        )
        self.batch = 2 if tiny else 16
        self.contrasts = ("T1", "CT") if tiny else ("T1", "T2", "FLAIR", "MRA", "CT")
        self.transfers = "mri:ct" if tiny else "mri:ct,ct:mri,T1:T2,T2:T1"


def run(name: str, command: Sequence[object], out: Path, *, limit_s: float) -> dict[str, Any]:
    """Run a part, its output going to `<out>/<name>.log`; say how it ended."""
    began = time.monotonic()
    with (out / f"{name}.log").open("w") as log:
        try:
            process = subprocess.run(
                list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, timeout=limit_s
            )
            ended = {"exit_code": process.returncode}
        except subprocess.TimeoutExpired:
            ended = {"timed_out_after_s": limit_s}
    return {**ended, "wall_s": round(time.monotonic() - began, 1)}


def configuration(objective: str, size: Size, place: Path) -> dict[str, Any]:
    """Return the configuration of a run of one objective; its number of steps is set later."""
    heads = place / "heads"
    data: dict[str, Any] = {
        "crop_size": size.crop,
        "num_workers": min(8, (os.cpu_count() or 2) - 1),
        "cached_volumes": 1000,
    }
    if "objective.name" not in OBJECTIVES[objective]:
        data |= {
            "sources": [{"path": str(heads / name), "modality": name} for name in ("mri", "ct")],
            "spacing_mm": size.spacing_mm,
            "check_content": False,
        }
    else:
        data["pairs"] = {
            "cases": str(heads),
            "contrasts": ["T1", "T2", "FLAIR", "MRA", "random", "CT"],
            "spacing_mm": size.spacing_mm,
        }
    raw: dict[str, Any] = {
        "run": {"name": objective, "out_dir": str(place / "runs"), "seed": 0, "tensorboard": False},
        "data": data,
        "model": {
            "backbone": dict(size.backbone),
            "sparse": "gather",
            "encoder_widths": [8] if size.tiny else [192, 256],
            "decoder_width": 8 if size.tiny else 192,
        },
        "masking": {"name": "mim", "block_side": 2},
        "training": {
            "epochs": 1_000_000,
            "batch_size": {"mri": size.batch, "ct": size.batch},
            "learning_rate": 1e-3 if size.tiny else 5e-4,
            "precision": "bf16" if torch.cuda.is_available() else "fp32",
            "probe_every_steps": 1_000_000,
            "checkpoint_every_epochs": 1_000_000,
            "checkpoint_every_steps": 1_000_000,
        },
    }
    for key, value in OBJECTIVES[objective].items():
        set_key(raw, key, value)
    return raw


def trained(objective: str, size: Size, place: Path, out: Path, train_s: float) -> dict[str, Any]:
    """Time some steps, then train for as many as fit into the time."""
    voxelwave = (PYTHON, "-m", "voxelwave")
    path = place / f"{objective}.yaml"
    path.write_text(yaml.safe_dump(configuration(objective, size, place)))
    if size.tiny:
        command = (*voxelwave, "pretrain", path, "--set", "training.max_steps=4")
        return {"steps": 4, "run": run(objective, command, out, limit_s=120)}
    trial = 30
    figures = run(
        f"{objective}_trial",
        (*voxelwave, "pretrain", path, "--set", f"run.name={objective}_trial", "--set", f"training.max_steps={trial}"),
        out,
        limit_s=120,
    )
    records = place / "runs" / f"{objective}_trial" / "metrics.jsonl"
    if figures.get("exit_code") != 0 or not records.exists():
        return {"trial": figures}
    lines = [json.loads(line) for line in records.read_text().splitlines()][trial // 2 :]
    step_s = sum(size.batch / line["volumes_per_second"] for line in lines) / len(lines)
    wait_s = sum(line["data_wait_s"] for line in lines) / len(lines)
    steps = int(train_s / step_s)
    figures = run(
        objective,
        (*voxelwave, "pretrain", path, "--set", f"training.max_steps={steps}"),
        out,
        limit_s=1.5 * train_s + 30,
    )
    return {"step_s": step_s, "data_wait_s": wait_s, "steps": steps, "run": figures}


def probed(objective: str, size: Size, place: Path, out: Path) -> dict[str, Any]:
    """Probe what was trained, on other heads."""
    command = (
        *(PYTHON, "-m", "voxelwave", "probe", place / "runs" / objective, place / "probed"),
        *("--label-classes", CLASSES, "--transfer", size.transfers, "--out", out / f"probe_{objective}.json"),
    )
    return run(f"probe_{objective}", command, out, limit_s=300)


def read(path: Path) -> dict[str, Any]:
    """Return what a part wrote, nothing where it wrote nothing."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def probes_of(out: Path) -> str:
    """Return the figures of all probes as a table."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for objective in OBJECTIVES:
        for result in read(out / f"probe_{objective}.json").get("results", ()):
            row = found.setdefault(tuple(result[name] for name in ("task", "modality", "probe", "measure")), {})
            for name, of in {objective: result["pretrained"], **result}.items():
                if name in (objective, "random_init", "raw_voxels"):
                    row[name] = f"{of['value']:.3f}"
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    head = " | ".join(("task", "modality", "probe", "measure", *columns))
    return table(head, [(*key, *(row.get(name, "") for name in columns)) for key, row in found.items()])


def text_of(out: Path) -> str:
    """Return what was measured as tables."""
    steps = []
    for name, of in read(out / "step.json").items():
        places = {"volumes_per_second": ".1f", "mfu": ".1%", "peak_memory_gib": ".1f"}
        values = [f"{of[key]:{form}}" if key in of else "" for key, form in places.items()]
        steps.append([name, *(values if "error" not in of else ["", "", of["error"]])])
    names = ("step_s", "deterministic_step_s", "step_peak_mb", "reconstruction_s", "reconstruction_peak_mb")
    recipe = [
        [name, *(f"{of[key]:.3g}" if of.get(key) is not None else "" for key in names)]
        for name, of in read(out / "reconstruction.json").items()
        if "step_s" in of
    ]
    parts = {
        "A step of configs/pretrain/production.yaml": table("variant | volumes a second | MFU | memory, GiB", steps),
        "PromptMR+, 3 slices, 8 cascades": table(
            "k-space | step, s | the same, deterministic | its memory, MB | reconstruction, s | its memory, MB", recipe
        ),
        "Probes on other heads": probes_of(out),
    }
    return "\n\n".join(f"## {title}\n\n{of}" for title, of in parts.items())


def main() -> None:
    """Run all parts, and write `gpu.json` and `gpu.md` after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--train-s", type=float, default=120)
    arguments = parser.parse_args()
    out, size, parts = arguments.out.absolute(), Size(arguments.tiny), arguments.parts.split(",")
    place = out / "work"
    place.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.processor() or 'unknown'}"
    figures: dict[str, Any] = {"card": card, "torch": torch.__version__, "tiny": size.tiny}

    def write() -> None:
        (out / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")
        (out / "gpu.md").write_text(f"# Measured on {card}, torch {torch.__version__}\n\n{text_of(out)}\n")

    # 1. The tests that need the card.
    tests = ("tests/sparse", "tests/physics", "tests/contracts/test_augmentations.py", "tests/data/augmentations")
    tests += ("tests/engine/test_optimizer.py",)
    if "tests" in parts and not size.tiny:
        figures["tests"] = run("tests", (PYTHON, "-m", "pytest", "-q", *tests, "-k", "cuda"), out, limit_s=120)
        write()
    # 2. The production step, and that of a reconstruction.
    for part in ("step", "reconstruction"):
        if part in parts:
            command = (PYTHON, ROOT / f"benchmarks/gpu/{part}.py", out / f"{part}.json", *(("--tiny",) * size.tiny))
            figures[part] = run(part, command, out, limit_s=120)
            write()
    if "objectives" not in parts:
        return
    # 3. Heads, objectives on them, and what each is worth.
    synthesize = (PYTHON, "-m", "voxelwave", "synthesize")
    for name, number, seed in (("heads", size.heads, 1), ("probed", size.probed, 2)):
        options = ("--num-heads", number, "--contrasts", ",".join(size.contrasts), "--size", size.side, "--seed", seed)
        figures[name] = run(name, (*synthesize, place / name, *options), out, limit_s=120)
    for objective in arguments.objectives.split(","):
        figures[objective] = trained(objective, size, place, out, arguments.train_s)
        write()
        figures[objective]["probe"] = probed(objective, size, place, out)
        write()


if __name__ == "__main__":
    main()
