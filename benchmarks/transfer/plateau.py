"""Fine-tuning on one and two labelled heads for many steps, each arm at the rates that suit it best.

python benchmarks/transfer/plateau.py [--seeds 0 1 2 3 4] [--out FOLDER] [--workers N] [--steps 3200]

Needs the runs that study.py left in FOLDER. The rates of every arm are chosen from the same grid on other heads. Every
finished cell is a line of results/transfer_plateau.jsonl; called again, the study goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import ARMS, BACKBONE, CROSS, CROSS_PLAIN, CURRENT, QUIET, SUPERVISED, pretrained
from scans import CHOICE_FIT, CHOICE_TEST, CLASSES, CROP, FIT, TEST, image_of, labels_of, modality_of
from study import RESULTS, end_with_parent, results
from summary import RESAMPLES, shown

from measuring import ended
from reporting import table
from voxelwave.jobs.finetune.config import check_finetune_config
from voxelwave.jobs.finetune.run import finetune
from voxelwave.ops.seeding import numpy_generator

CELLS = RESULTS / "transfer_plateau.jsonl"
SCRATCH, SCRATCH_PLAIN = "scratch", "scratch, plain transformer"
UNTRAINED = {SCRATCH: BACKBONE, SCRATCH_PLAIN: {**BACKBONE, "wavelet_levels": 0}}
COMPARED = (SCRATCH, CURRENT, CROSS, SUPERVISED)
# Arms that take the rates of another, which differs from them in the attention alone.
RATES_OF = {SCRATCH_PLAIN: SCRATCH, CROSS_PLAIN: CROSS}
RATES, SHARES = (1e-3, 3e-3, 1e-2), (0.1, 0.3, 1.0)  # of learning, and of the backbone's in it
LABELLED = (1, 2)
TESTED = {CHOICE_TEST: 8, TEST: 64}
UNSEEN, UNSEEN_HEADS = ("T2", "FLAIR"), 32  # contrasts without a label in them, which the same model is asked for
Cell = dict[str, Any]


def write_cases(path: Path, *parts: tuple[str, str, str, range]) -> Path:
    """Write a list of cases: of each part the set of heads, the split, the contrast and the numbers of its heads."""
    folder = path.parent
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "modality", "split"])
        writer.writerows(
            [image_of(folder, of, contrast, n), labels_of(folder, of, n), modality_of(contrast), split]
            for of, split, contrast, numbers in parts
            for n in numbers
        )
    return path


def fill(
    arm: str, seed: int, labelled: int, rate: float, share: float, *, steps: int, choice: bool, folder: Path
) -> Cell:
    """Fine-tune and test; of a seed it is another head that is labelled."""
    torch.set_num_threads(1)
    pretraining = json.loads((folder / "steps.json").read_text())
    run = None
    if arm not in UNTRAINED:
        run = str(pretrained(arm, folder, folder / "runs", steps=pretraining[arm], seed=seed))
    fit, test = (CHOICE_FIT, CHOICE_TEST) if choice else (FIT, TEST)
    first = 0 if choice else seed * max(LABELLED)
    cases = write_cases(
        folder / f"plateau {fit} {first} {labelled}.csv",
        (fit, "train", "T1", range(first, first + labelled)),
        (test, "test", "T1", range(TESTED[test])),
        *((test, "test", contrast, range(UNSEEN_HEADS)) for contrast in UNSEEN if not choice),
    )
    raw = settings_of(f"plateau {arm} {seed} {labelled} {rate} {share} {choice}", cases, seed=seed, steps=steps)
    raw["backbone"] = {"path": run, "lr_scale": share, "scratch": UNTRAINED.get(arm, BACKBONE)}
    raw["training"]["learning_rate"] = rate
    dice = tested(raw)
    settings = {"labelled": labelled, "rate": rate, "share": share, "steps": steps, "choice": choice}
    return {"arm": arm, "seed": seed, **settings, "dice": dice.pop("T1"), "unseen": dice}


def settings_of(name: str, cases: Path, *, seed: int, steps: int) -> dict[str, Any]:
    """Return the settings of a fine-tuning run, without those of the backbone and the rate."""
    return {
        "run": {
            "name": re.sub(r"\W+", "_", name),
            "out_dir": str(cases.parent / "plateau"),
            "seed": seed,
            "tensorboard": False,
            "figures": False,
        },
        "task": {
            "name": "segmentation",
            "classes": {str(number): [int(tissue)] for tissue, number in CLASSES.items()},
            "other_labels": "background",
            "width": 8,
            "hausdorff": False,
        },
        "data": {
            "cases": str(cases),
            "crop_size": [CROP] * 3,
            "spacing_mm": "native",
            "folds": 1,
            "augment": {
                name: {"flip": {"axes": [0]}, "affine": {}, "gamma": {}, "noise": {}} for name in ("mri", "ct")
            },
        },
        "training": {"max_steps": steps, "batch_size": 2},
    }


def tested(raw: dict[str, Any]) -> dict[str, list[float]]:
    """Train as `raw` says, and return the Dice of each tested head by contrast: the mean of its tissues."""
    config = check_finetune_config(raw)
    shutil.rmtree(config.run_folder(), ignore_errors=True)
    ended(finetune(config, console=QUIET))
    with (config.run_folder() / "results.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["part"] == "test"]
    by_head: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["dice"]:
            head, contrast = row["case"].split("_")[-2:]
            by_head.setdefault(contrast, {}).setdefault(head, []).append(float(row["dice"]))
    shutil.rmtree(config.run_folder())
    return {name: [round(sum(of) / len(of), 4) for of in heads.values()] for name, heads in by_head.items()}


def read_cells() -> list[Cell]:
    """Return the cells that are filled."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


def grid(arms: Sequence[str]) -> Iterator[tuple[str, int, int, float, float]]:
    """Yield what every arm's rates are chosen from: one labelled head, one seed of pretraining that is not tested."""
    for arm, rate, share in product(dict.fromkeys(RATES_OF.get(arm, arm) for arm in arms), RATES, SHARES):
        yield arm, 100, 1, rate, share


def best_rates(cells: Sequence[Cell], arm: str) -> tuple[float, float]:
    """Return the rate and the share that an arm does best with on the heads for choices."""
    own = [cell for cell in cells if cell["choice"] and cell["arm"] == RATES_OF.get(arm, arm)]
    best = max(own, key=lambda cell: sum(cell["dice"]) / len(cell["dice"]))
    return best["rate"], best["share"]


def write_report(cells: Sequence[Cell], steps: int) -> None:
    """Write `transfer_plateau.md`: means over seeds, with intervals over draws of seeds and heads."""
    cells = [cell for cell in cells if cell["steps"] == steps]
    arms = [arm for arm in (*UNTRAINED, *ARMS) if any(cell["arm"] == arm for cell in cells)]
    rates = {arm: best_rates(cells, arm) for arm in arms}
    grid_rows = [
        (arm, *(f"{100 * _mean(cells, arm, rate, share):.1f}" for rate, share in product(RATES, SHARES)))
        for arm in arms
        if arm not in RATES_OF
    ]
    columns = " | ".join(f"{rate:g}, {share:g}" for rate, share in product(RATES, SHARES))
    texts = [
        "# Fine-tuning to a plateau",
        f"{steps} steps. Dice in points, mean of {len(CLASSES)} tissues.",
        "## Rates of learning and of the backbone's share in it, on other heads, one labelled",
        table(f"arm | {columns}", grid_rows),
        f"## One and two labelled heads, {TESTED[TEST]} tested, rates as chosen above",
        "In brackets 95 % of draws of seeds and of tested heads. Of every seed other heads are labelled, the same ones "
        "for all arms.",
    ]
    figures: dict[str, Any] = {"rates": rates}
    rows = []
    pretrained_arms = [arm for arm in arms if arm not in UNTRAINED]
    for labelled, contrast, arm in product(LABELLED, ("T1", *UNSEEN), pretrained_arms):
        pair = (SCRATCH_PLAIN if arm == CROSS_PLAIN else SCRATCH, arm)
        tested = {
            (cell["arm"], cell["seed"]): cell["dice"] if contrast == "T1" else cell["unseen"][contrast]
            for cell in cells
            if not cell["choice"]
            and cell["arm"] in pair
            and cell["labelled"] == labelled
            and (cell["rate"], cell["share"]) == rates[cell["arm"]]
        }
        seeds = [seed for seed in range(100) if all((one, seed) in tested for one in pair)]
        if not seeds:
            continue
        dice = [np.array([tested[one, seed] for seed in seeds]) for one in pair]
        generator = numpy_generator("transfer plateau", labelled, contrast)
        drawn = [np.ix_(*(generator.integers(count, size=count) for count in dice[0].shape)) for _ in range(RESAMPLES)]
        scratch, own = (np.array([of.mean(), *(of[one].mean() for one in drawn)]) for of in dice)
        rows.append((labelled, contrast, arm, len(seeds), shown(scratch), shown(own), shown(own - scratch, "+")))
        by_seed = {one: (100 * of.mean(1)).round(1).tolist() for one, of in zip(pair, dice, strict=True)}
        figures[f"{labelled} labelled, {contrast}, {arm}"] = {"seeds": seeds, "by_seed": by_seed}
    head = "labelled in T1 | asked for in | arm | seeds | from scratch, same attention | arm | difference"
    texts.append(table(head, rows))
    (RESULTS / "transfer_plateau.md").write_text("\n\n".join(texts) + "\n")
    (RESULTS / "transfer_plateau.json").write_text(json.dumps(figures, indent=1) + "\n")


def _mean(cells: Sequence[Cell], arm: str, rate: float, share: float) -> float:
    dice = [
        cell["dice"]
        for cell in cells
        if cell["choice"] and (cell["arm"], cell["rate"], cell["share"]) == (arm, rate, share)
    ]
    return float(np.mean(dice)) if dice else float("nan")


def main() -> None:
    """Choose rates, and fill the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--out", type=Path, default=Path("data/transfer"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--arms", nargs="+", default=COMPARED, choices=[*UNTRAINED, *ARMS])
    arguments = parser.parse_args()
    folder, arms = arguments.out.absolute(), arguments.arms
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=end_with_parent) as pool:
        for choice in (True, False):
            done = [cell for cell in read_cells() if cell["steps"] == arguments.steps]
            # One label first of all seeds; no two processes then pretrain the same run.
            tested = ((arm, seed, labelled) for labelled, seed, arm in product(LABELLED, arguments.seeds, arms))
            asked = grid(arms) if choice else tested
            filled = {
                (cell["arm"], cell["seed"], cell["labelled"], cell["rate"], cell["share"])
                for cell in done
                if cell["choice"] == choice
            }
            planned = [one if choice else (*one, *best_rates(done, one[0])) for one in asked]
            jobs = [
                pool.submit(fill, *one, steps=arguments.steps, choice=choice, folder=folder)
                for one in planned
                if one not in filled
            ]
            for cell in results(pool, jobs):
                print({**cell, "dice": sum(cell["dice"]) / len(cell["dice"])}, flush=True)
                with CELLS.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(cell, separators=(",", ":")) + "\n")
    write_report(read_cells(), arguments.steps)


if __name__ == "__main__":
    main()
