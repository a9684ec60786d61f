"""Lesions and aneurysms that frozen features find, and heads that they tell to have one.

python benchmarks/transfer/detection.py [--seeds 0 1] [--out FOLDER] [--workers N] [--arms A B]

Uses the heads and runs that study.py left in FOLDER, and makes what is missing. Every finished cell is a line of
results/transfer_detection.jsonl; called again, the script goes on. A probe is fitted on single tokens and asked for
every token of other heads, which are seen as eight crops; the local maxima of what it says are the candidates.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from arms import CROSS, CROSS_PLAIN, CURRENT, MAE, SUPERVISED, pretrained
from endpoints import RAW_SCAN, fitted
from monai.metrics import compute_fp_tp_probs_nd, compute_froc_curve_data, compute_froc_score
from scans import CROP, HEADS, PATCH, SEARCH_FIT, SEARCH_TEST, SIDE, image_of, labels_of, modality_of, write_heads
from scipy import ndimage
from scipy.stats import rankdata
from study import RESULTS, end_with_parent, results
from summary import RANDOM, RESAMPLES, shown

from reporting import table
from voxelwave.data.scaled import read_scaled
from voxelwave.downstream.embedding import untrained_twin
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.evaluation.classification import area_under_curve
from voxelwave.ops.patches import patchify
from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import LESIONS, Tissue
from voxelwave.registry import MODALITIES

CELLS = RESULTS / "transfer_detection.jsonl"
SOUGHT = {"lesion": LESIONS, "aneurysm": (Tissue.ANEURYSM,)}
TASKS = (
    ("lesion", "T1", "T1"),
    ("lesion", "CT", "CT"),
    ("lesion", "T1", "CT"),
    ("lesion", "CT", "T1"),
    ("aneurysm", "MRA", "MRA"),
)
COMPARED = (RAW_SCAN, RANDOM, CURRENT, MAE, SUPERVISED, CROSS, CROSS_PLAIN)
FALSE_POSITIVES = (0.5, 1.0, 2.0, 4.0)  # of a head
MOST = 10  # candidates of a head that are kept; no figure asks for more
NEGATIVES = 300  # tokens of each head that a probe is fitted on
SURE = 4  # voxels of a token; with fewer, but some, it is not fitted on
TOKENS = SIDE // PATCH
BESIDE = ndimage.generate_binary_structure(3, 1)
Cell = dict[str, Any]


class Head(NamedTuple):
    """The tokens of a head, without those of air: features, places, and of what is sought how many voxels."""

    features: np.ndarray
    places: np.ndarray
    voxels: dict[str, np.ndarray]
    lesions: dict[str, np.ndarray]  # `[16, 16, 16]`: the number of the lesion in a token or beside it, else 0
    tiny: dict[str, list[int]]  # lesions of fewer than `SURE` voxels, which nobody has to find


def read_heads(folder: Path, of: str, contrast: str, features: FeaturePyramid | None, *, mixed: bool) -> list[Head]:
    """Embed the heads of a set; without a backbone their voxels and places, over the channels where `mixed`."""
    modality = MODALITIES.build(modality_of(contrast))
    heads = []
    for number in range(HEADS[of]):
        volume = read_scaled(image_of(folder, of, contrast, number), modality).volume
        tissues = torch.from_numpy(np.asarray(nibabel.load(labels_of(folder, of, number)).dataobj))

        def share(tissue: torch.Tensor) -> np.ndarray:
            return patchify(tissue[None, None].float(), PATCH)[0, :, 0].sum(1).numpy()

        occupied = share(tissues != Tissue.AIR) >= PATCH**3 / 2
        places = np.argwhere(np.ones((TOKENS,) * 3, bool))[occupied]
        if features is None:
            raw = patchify(volume[None], PATCH)[0]
            rows = (raw.mean(1) if mixed else raw.flatten(1)).numpy()[occupied]
            rows = np.concatenate([rows, (places + 0.5) / TOKENS], 1)
        else:
            rows = tokens_of(features, volume)[occupied]
        voxels, lesions, tiny = {}, {}, {}
        for name, kinds in SOUGHT.items():
            count = share(torch.isin(tissues, torch.tensor(kinds)))
            voxels[name] = count[occupied]
            grid, number_of = ndimage.label(count.reshape((TOKENS,) * 3) > 0, np.ones((3, 3, 3)))
            sizes = np.bincount(grid.ravel(), count, number_of + 1)
            tiny[name] = [one for one in range(1, number_of + 1) if sizes[one] < SURE]
            lesions[name] = np.where(grid > 0, grid, ndimage.grey_dilation(grid, footprint=BESIDE))
        heads.append(Head(rows, places, voxels, lesions, tiny))
    return heads


def tokens_of(features: FeaturePyramid, volume: torch.Tensor) -> np.ndarray:
    """Return the features of every token in raster order, the volume seen as crops that do not overlap."""
    side, grid = SIDE // CROP, CROP // PATCH
    crops = patchify(volume[None], CROP)[0].unflatten(2, (CROP,) * 3)
    with torch.no_grad():
        deep = features(crops)[-1].movedim(1, -1)
    whole = deep.view(side, side, side, grid, grid, grid, -1).permute(0, 3, 1, 4, 2, 5, 6)
    return whole.reshape(TOKENS**3, -1).float().numpy()


def measure(train: Sequence[Head], test: Sequence[Head], sought: str, key: str) -> Cell:
    """Fit on the tokens of `train` and look for candidates in `test`.

    What is kept of a candidate is the place of its score among those of all tokens, from 1; 0 of a lesion without one.
    """
    rows, labels = [], []
    for number, head in enumerate(train):
        count = head.voxels[sought]
        generator = numpy_generator("transfer negatives", key, number)
        negative = generator.permutation(np.flatnonzero(count == 0))[:NEGATIVES]
        chosen = np.concatenate([np.flatnonzero(count >= SURE), negative])
        rows.append(head.features[chosen])
        labels.append(count[chosen] > 0)
    probe = fitted(np.concatenate(rows), np.concatenate(labels))
    scores = [probe.decision_function(head.features) for head in test]
    ranks = np.split(rankdata(-np.concatenate(scores), "ordinal"), np.cumsum([len(one) for one in scores])[:-1])
    found: list[list[int]] = []
    wrong: list[list[int]] = []
    for head, rank in zip(test, ranks, strict=True):
        grid = np.zeros((TOKENS,) * 3)
        grid[tuple(head.places.T)] = 1 / rank
        peaks = np.argwhere((grid > 0) & (grid == ndimage.maximum_filter(grid, 3)))
        elsewhere, here, _ = compute_fp_tp_probs_nd(grid[tuple(peaks.T)], peaks, head.lesions[sought])
        here = np.delete(here, np.array(head.tiny[sought], int) - 1)
        found.append([round(1 / score) if score else 0 for score in here.tolist()])
        wrong.append([round(1 / score) for score in np.sort(elsewhere)[::-1][:MOST].tolist()])
    # The head as a whole: a probe of the mean of its tokens.
    pooled = [np.stack([head.features.mean(0) for head in heads]) for heads in (train, test)]
    has = [np.array([(head.voxels[sought].sum() >= SURE) for head in heads]) for heads in (train, test)]
    told = fitted(pooled[0], has[0], 1e-2).decision_function(pooled[1])
    return {
        "found": found,
        "wrong": wrong,
        "has": has[1].astype(int).tolist(),
        "pooled": np.round(rankdata(told), 1).tolist(),
    }


def run_of(arm: str, seed: int) -> tuple[str, int]:
    """Return the arm and the seed of the run that is read; of random weights the architecture alone is taken."""
    return (CURRENT, 0) if arm == RANDOM else (arm, seed)


def fill(arm: str, seed: int, steps: dict[str, int], folder: Path) -> Cell:
    """Measure an arm, whose run is there."""
    torch.set_num_threads(1)
    features = None
    if arm != RAW_SCAN:
        of, of_seed = run_of(arm, seed)
        features = load_backbone(pretrained(of, folder, folder / "runs", steps=steps[of], seed=of_seed)).eval()
    if arm == RANDOM:
        features = untrained_twin(features, seed=seed).eval()
    read = cache(lambda of, contrast, mixed: read_heads(folder, of, contrast, features, mixed=mixed))
    tasks = {}
    for sought, origin, goal in TASKS:
        mixed = features is None and (origin == "CT") != (goal == "CT")
        train, test = read(SEARCH_FIT, origin, mixed), read(SEARCH_TEST, goal, mixed)
        tasks[f"{sought}, {origin}→{goal}"] = measure(train, test, sought, f"{sought} {origin}")
    return {"arm": arm, "seed": seed, "tasks": tasks}


def _scores(ranks: Sequence[int]) -> list[float]:
    return [1 / rank if rank else 0.0 for rank in ranks]


def froc(task: Cell, heads: np.ndarray) -> list[float]:
    """Return the sensitivity at each of `FALSE_POSITIVES`, and their mean."""
    right, wrong = (np.concatenate([_scores(task[kind][head]) for head in heads]) for kind in ("found", "wrong"))
    per_head, sensitivity = compute_froc_curve_data(wrong, right, len(right), len(heads))
    each = [float(compute_froc_score(per_head, sensitivity, (number,))) for number in FALSE_POSITIVES]
    return [*each, float(np.mean(each))]


def areas(task: Cell, heads: np.ndarray) -> list[float]:
    """Return how well the head is told by its best candidate, and by a probe of the mean of its tokens."""
    has = np.array(task["has"])[heads] > 0
    best = np.array([max(*_scores(task["found"][head]), *_scores(task["wrong"][head]), 0, 0) for head in heads])
    return [area_under_curve(best, has), area_under_curve(np.array(task["pooled"])[heads], has)]


def write_report(cells: Sequence[Cell]) -> None:
    """Write `transfer_detection.md`: means over seeds with an interval over draws of seeds and heads."""
    arms = [arm for arm in COMPARED if any(cell["arm"] == arm for cell in cells)]
    measures = [
        *(f"at {number:g}" for number in FALSE_POSITIVES),
        "mean of these",
        "AUC, best candidate",
        "AUC, pooled",
    ]
    texts = [
        "# Lesions and aneurysms",
        f"Probes of frozen features, fitted on {HEADS[SEARCH_FIT]} heads, asked for {HEADS[SEARCH_TEST]} others. "
        "The share that is found, in %, at so many wrong candidates a head; and the area under the ROC curve of heads "
        "with one against heads without, in %. In brackets 95 % of draws of seeds and heads.",
    ]
    heads = np.arange(HEADS[SEARCH_TEST])
    drawn = numpy_generator("transfer detection").integers(len(heads), size=(RESAMPLES // 10, len(heads)))
    figures: dict[str, Any] = {}
    for sought, origin, goal in TASKS:
        name = f"{sought}, {origin}→{goal}"
        values = {}
        for arm in arms:
            own = [cell["tasks"][name] for cell in cells if cell["arm"] == arm]
            by_seed = np.array([[[*froc(task, of), *areas(task, of)] for of in (heads, *drawn)] for task in own])
            seeds = numpy_generator("transfer seeds", arm).integers(len(own), size=(len(drawn), len(own)))
            rows = np.arange(1, len(drawn) + 1)
            values[arm] = np.concatenate([by_seed[:, :1].mean(0), by_seed[seeds.T, rows].mean(0)])
            figures.setdefault(name, {})[arm] = dict(zip(measures, values[arm][0].round(4).tolist(), strict=True))
        lesions = sum(map(len, cells[0]["tasks"][name]["found"]))
        texts += [
            f"## {name}: {lesions} in {sum(cells[0]['tasks'][name]['has'])} heads",
            table(
                "measure | " + " | ".join(arms),
                [(measure, *(shown(values[arm][:, at]) for arm in arms)) for at, measure in enumerate(measures)],
            ),
        ]
        if CROSS_PLAIN in arms:
            others = [arm for arm in arms if arm != CROSS_PLAIN]
            rows_of = [
                (measure, *(shown(values[CROSS_PLAIN][:, at] - values[arm][:, at], "+") for arm in others))
                for at, measure in enumerate(measures)
            ]
            texts.append(table(f"{CROSS_PLAIN} minus | " + " | ".join(others), rows_of))
    (RESULTS / "transfer_detection.md").write_text("\n\n".join(texts) + "\n")
    (RESULTS / "transfer_detection.json").write_text(json.dumps(figures, indent=1) + "\n")


def read_cells() -> list[Cell]:
    """Return the cells that are filled."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


def main() -> None:
    """Fill the cells that are missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(2))
    parser.add_argument("--out", type=Path, default=Path("data/transfer"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--arms", nargs="+", default=COMPARED)
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=end_with_parent) as pool:
        write_heads(folder, pool)
        steps = json.loads((folder / "steps.json").read_text())
        filled = {(cell["arm"], cell["seed"]) for cell in read_cells()}
        asked = [
            (arm, seed)
            for seed in arguments.seeds
            for arm in arguments.arms
            if not (arm == RAW_SCAN and seed > 0) and (arm, seed) not in filled
        ]
        # First of all the runs that are missing, each by one process.
        runs = {run_of(*one) for one in asked if one[0] != RAW_SCAN}
        training = [pool.submit(pretrained, of, folder, folder / "runs", steps=steps[of], seed=s) for of, s in runs]
        list(results(pool, training))
        for cell in results(pool, [pool.submit(fill, *one, steps, folder) for one in asked]):
            print(cell["arm"], cell["seed"], flush=True)
            with CELLS.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(cell, separators=(",", ":")) + "\n")
    write_report(read_cells())


if __name__ == "__main__":
    main()
