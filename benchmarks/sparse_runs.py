"""A whole subset pretraining run on each backend, same seed: do the losses agree, and what does a step take?

python benchmarks/sparse_runs.py [--out FOLDER] [--epochs 10]

Needs MinkowskiEngine (`make minkowski`) and the generated heads of `make demo`, which it makes where they are missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measuring import RESULTS, report
from reporting import table
from short_runs import Run, run_folder, train
from subset_study import make_heads
from voxelwave.sparse.backends import NAMES

COMPARED = 50
WANTED = 1e-3


def against(run: Run, dense: Run) -> dict[str, Any]:
    """Return how far the losses of a run are from those of the dense one, step by step."""
    apart = [abs(a["loss"] - b["loss"]) for a, b in zip(run.records, dense.records, strict=True)]
    return {
        "largest_difference_first_50": max(apart[:COMPARED]),
        "largest_difference": max(apart),
        "last_epoch": run.epochs()[-1]["reconstruction"],
        "duration_s": run.duration_s,
    }


def main() -> None:
    """Train once on each backend, and compare with dense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    make_heads()
    with run_folder(arguments.out) as folder:
        runs = {
            name: train([f"model.sparse={name}", f"training.epochs={arguments.epochs}"], folder, f"sparse_{name}")
            for name in NAMES
        }
    figures = {name: against(run, runs["dense"]) for name, run in runs.items()}
    steps = len(runs["dense"].records)
    report(
        "sparse_runs",
        {
            "steps": steps,
            "wanted_difference": WANTED,
            "loss_at_first_step": runs["dense"].records[0]["loss"],
            "runs": figures,
        },
    )
    rows = [
        [
            name,
            f"{f['largest_difference_first_50']:.1e}",
            f"{f['largest_difference']:.1e}",
            f"{f['last_epoch']:.4f}",
            f"{f['duration_s']:.0f}",
        ]
        for name, f in figures.items()
    ]
    head = "backend | furthest from dense, first 50 steps | all steps | reconstruction, last epoch | seconds of steps"
    text = f"configs/pretrain/subset.yaml, {steps} steps, seed 0; the losses of the same step compared.\n\n" + table(
        head, rows
    )
    (RESULTS / "sparse_runs.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
