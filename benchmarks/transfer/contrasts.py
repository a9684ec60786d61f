"""Fine-tuning on one labelled T1 with the augmentation `contrast`, asked for contrasts without a label.

python benchmarks/transfer/contrasts.py [--seeds 0 1 2] [--out FOLDER] [--workers N]

Needs the runs that study.py left in FOLDER, and compares with the cells of plateau.py: the same heads, rates and steps
without the augmentation. Its settings are chosen on other heads, after fewer steps. Every finished cell is a line of
results/transfer_contrasts.jsonl; called again, the study goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import plateau
import torch
from arms import CROSS_PLAIN, pretrained
from plateau import (
    LABELLED,
    SCRATCH_PLAIN,
    TESTED,
    UNSEEN,
    UNSEEN_HEADS,
    UNTRAINED,
    Cell,
    settings_of,
    tested,
    write_cases,
)
from scans import CHOICE_FIT, CHOICE_TEST, FIT, TEST
from study import RESULTS, end_with_parent, results
from summary import RESAMPLES, shown

from reporting import table
from voxelwave.ops.seeding import numpy_generator

CELLS = RESULTS / "transfer_contrasts.jsonl"
ARMS = (SCRATCH_PLAIN, CROSS_PLAIN)
GRID = [{"share": share, "knots": knots} for share, knots in product((0.5, 0.8), (4, 6))]
CHOICE_STEPS, STEPS = 1200, 3200
RATE, LR_SCALE = 1e-2, 0.3  # as plateau.py chose them for both arms
ASKED = ("T1", *UNSEEN)


def fill(arm: str, seed: int, contrast: dict[str, Any], choice: bool, folder: Path) -> Cell:
    """Fine-tune on one labelled head and test; of a seed it is the head that plateau.py labels."""
    torch.set_num_threads(1)
    run = None
    if arm not in UNTRAINED:
        steps = json.loads((folder / "steps.json").read_text())[arm]
        run = str(pretrained(arm, folder, folder / "runs", steps=steps, seed=seed))
    fit, test = (CHOICE_FIT, CHOICE_TEST) if choice else (FIT, TEST)
    first = 0 if choice else seed * max(LABELLED)
    cases = write_cases(
        folder / f"contrasts {fit} {first}.csv",
        (fit, "train", "T1", range(first, first + 1)),
        (test, "test", "T1", range(TESTED[test])),
        *((test, "test", name, range(min(UNSEEN_HEADS, TESTED[test]))) for name in UNSEEN),
    )
    steps = CHOICE_STEPS if choice else STEPS
    raw = settings_of(f"contrasts {arm} {seed} {contrast} {choice}", cases, seed=seed, steps=steps)
    raw["backbone"] = {"path": run, "lr_scale": LR_SCALE, "scratch": UNTRAINED.get(arm, {})}
    raw["training"]["learning_rate"] = RATE
    raw["data"]["augment"]["mri"] = {"contrast": contrast, **raw["data"]["augment"]["mri"]}
    return {"arm": arm, "seed": seed, "contrast": contrast, "choice": choice, "dice": tested(raw)}


def read_cells() -> list[Cell]:
    """Return the cells that are filled."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


def score(cell: Cell) -> float:
    """Return what settings are chosen by: the mean over contrasts of the mean Dice."""
    return float(np.mean([np.mean(cell["dice"][name]) for name in ASKED]))


def write_report(cells: Sequence[Cell], contrast: dict[str, Any]) -> None:
    """Write `transfer_contrasts.md`: with and without the augmentation, means over seeds with intervals."""
    chosen = [
        (
            f"{cell['contrast']['share']:g}",
            cell["contrast"]["knots"],
            *(f"{100 * np.mean(cell['dice'][n]):.1f}" for n in ASKED),
        )
        for cell in cells
        if cell["choice"]
    ]
    with_it = {(cell["arm"], cell["seed"]): cell["dice"] for cell in cells if not cell["choice"]}
    without = {
        (cell["arm"], cell["seed"]): {"T1": cell["dice"], **cell["unseen"]}
        for cell in plateau.read_cells()
        if not cell["choice"]
        and (cell["labelled"], cell["steps"], cell["rate"], cell["share"]) == (1, STEPS, RATE, LR_SCALE)
    }
    seeds = [seed for seed in range(100) if all((arm, seed) in of for arm in ARMS for of in (with_it, without))]
    rows, figures = [], {"contrast": contrast, "seeds": seeds}
    for name in ASKED:
        dice = {
            (label, arm): np.array([of[arm, seed][name] for seed in seeds])
            for label, of in (("without", without), ("with", with_it))
            for arm in ARMS
        }
        shape = dice["with", CROSS_PLAIN].shape
        generator = numpy_generator("transfer contrasts", name)
        drawn = [np.ix_(*(generator.integers(count, size=count) for count in shape)) for _ in range(RESAMPLES)]
        means = {key: np.array([of.mean(), *(of[one].mean() for one in drawn)]) for key, of in dice.items()}
        scratch, cross = (means["with", arm] for arm in ARMS)
        rows.append(
            (
                name,
                *(shown(means[label, arm]) for arm in ARMS for label in ("without", "with")),
                shown(scratch - means["without", SCRATCH_PLAIN], "+"),
                shown(cross - scratch, "+"),
            )
        )
        figures[name] = {f"{label}, {arm}": (100 * of.mean(1)).round(1).tolist() for (label, arm), of in dice.items()}
    texts = [
        "# Fine-tuning on one T1, asked for other contrasts",
        f"{STEPS} steps; Dice in points, mean of six tissues; {TESTED[TEST]} heads in T1, {UNSEEN_HEADS} in others. "
        f"{len(seeds)} seeds, each with another labelled head. In brackets 95 % of draws of seeds and heads.",
        table(
            "asked for in | from scratch | from scratch, `contrast` | cross-contrast | cross-contrast, `contrast` | "
            "gained from scratch by `contrast` | gained by pretraining, both with `contrast`",
            rows,
        ),
        f"## Settings, on other heads, from scratch, {CHOICE_STEPS} steps; taken: {contrast}",
        table(f"share | knots | {' | '.join(ASKED)}", chosen),
    ]
    (RESULTS / "transfer_contrasts.md").write_text("\n\n".join(texts) + "\n")
    (RESULTS / "transfer_contrasts.json").write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    """Choose the settings, fill the cells that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(3))
    parser.add_argument("--out", type=Path, default=Path("data/transfer"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=end_with_parent) as pool:

        def filled(planned: Sequence[tuple[str, int, dict[str, Any], bool]]) -> list[Cell]:
            known = [(cell["arm"], cell["seed"], cell["contrast"], cell["choice"]) for cell in read_cells()]
            jobs = [pool.submit(fill, *one, arguments.out.absolute()) for one in planned if one not in known]
            for cell in results(pool, jobs):
                print({**cell, "dice": {name: np.mean(of) for name, of in cell["dice"].items()}}, flush=True)
                with CELLS.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(cell, separators=(",", ":")) + "\n")
            return read_cells()

        tried = filled([(SCRATCH_PLAIN, 0, one, True) for one in GRID])
        best = max((cell for cell in tried if cell["choice"]), key=score)["contrast"]
        cells = filled([(arm, seed, best, False) for seed, arm in product(arguments.seeds, ARMS)])
    write_report(cells, best)


if __name__ == "__main__":
    main()
