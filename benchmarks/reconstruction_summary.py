"""Table and picture of the study of reconstructions, of the cells that are finished."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray
from torch import Tensor

from reconstruction_arms import CLASSICAL, L1_WAVELET, NETWORKS, OUR_STEPS, OURS, SENSE, UNET, classical, estimated_maps
from reporting import table
from semi_synthetic import NUM_CENTER, OTHERS, RATES, TEST, held_out, lines
from voxelwave.ops.seeding import numpy_generator

Cell = dict[str, Any]
CHOICE_SEED = 100
SEEDS = (0, 1, 2)
DRAWS = 10_000
MEASURES = {"ssim": 4, "psnr_db": 2, "nmse": 4}
# How much PromptMR+ should be above the better classical method: SSIM, and PSNR in dB.
WANTED = {4: {"ssim": 0.03, "psnr_db": 1.0}, 8: {"ssim": 0.05, "psnr_db": 2.0}}
PICTURED, PICTURED_RATE, ERROR_GAIN = 4, 8, 5


def values(cells: list[Cell], arm: str, rate: int, measure: str, split: str = TEST) -> ndarray | None:
    """Return the scores `[seed, image]` of the finished seeds, or None."""
    rows = [
        cell[split][measure] for cell in cells if (cell["arm"], cell["rate"]) == (arm, rate) and cell["seed"] in SEEDS
    ]
    return np.array(rows, float) if rows else None


def difference(ours: ndarray, theirs: ndarray) -> tuple[float, float, float]:
    """Return the mean difference and its 95 % interval: images are drawn in pairs, the seeds of each arm for itself."""
    generator = numpy_generator("reconstruction quality", "bootstrap")
    images = generator.integers(ours.shape[1], size=(DRAWS, ours.shape[1]))

    def drawn(of: ndarray) -> ndarray:
        seeds = generator.integers(len(of), size=(DRAWS, len(of)))
        counts = np.apply_along_axis(np.bincount, 1, seeds, minlength=len(of)) / len(of)
        return np.asarray(np.einsum("ds,sdi->d", counts, of[:, images]) / of.shape[1])

    low, high = np.percentile(drawn(ours) - drawn(theirs), (2.5, 97.5))
    return float(ours.mean() - theirs.mean()), float(low), float(high)


def shown(of: tuple[float, float, float], digits: int) -> str:
    """Write a difference with its interval."""
    middle, low, high = of
    return f"{middle:+.{digits}f} ({low:+.{digits}f}…{high:+.{digits}f})"


def figures_of(cells: list[Cell]) -> dict[str, Any]:
    """Reduce the cells to what is reported, by rate and arm."""
    found: dict[str, Any] = {}
    for rate in RATES:
        rows: dict[str, Any] = {}
        for arm in (*CLASSICAL, *NETWORKS):
            if values(cells, arm, rate, "ssim") is None:
                continue
            of = [c for c in cells if (c["arm"], c["rate"]) == (arm, rate) and c["seed"] in SEEDS]
            row: dict[str, Any] = {"seeds": sorted(c["seed"] for c in of)}
            if arm in NETWORKS:
                row |= {key: of[0][key] for key in ("parameters", "learning_rate")}
                row["steps"] = [c["steps"] for c in of]
            for split in (TEST, OTHERS):
                row[split] = {}
                for measure in MEASURES:
                    theirs = values(cells, arm, rate, measure, split)
                    ours = values(cells, OURS, rate, measure, split)
                    assert theirs is not None
                    row[split][measure] = {
                        "mean": float(theirs.mean()),
                        "by_seed": [float(seed.mean()) for seed in theirs],
                        "by_image": [float(image) for image in theirs.mean(0)],
                        "ours_minus_it": None if ours is None or arm == OURS else difference(ours, theirs),
                    }
            rows[arm] = row
        found[str(rate)] = rows
    return found


def better_classical(rows: dict[str, Any], measure: str) -> str:
    """Return which of SENSE and L1-wavelet has the better mean on the test images."""
    return max((SENSE, L1_WAVELET), key=lambda arm: rows[arm][TEST][measure]["mean"] if arm in rows else -1)


def rows_of(rows: dict[str, Any], split: str) -> list[list[object]]:
    """Return the rows of a table of one rate."""
    made: list[list[object]] = []
    for arm, row in rows.items():
        means = [f"{row[split][measure]['mean']:.{digits}f}" for measure, digits in MEASURES.items()]
        gaps = [row[split][measure]["ours_minus_it"] for measure in ("ssim", "psnr_db")]
        trained = ["–", "–", "–"]
        if arm in NETWORKS:
            ends = dict.fromkeys((min(row["steps"]), max(row["steps"])))
            trained = [str(len(row["seeds"])), f"{row['parameters']:,}", "–".join(f"{steps:,}" for steps in ends)]
        spread = row[split]["ssim"]["by_seed"]
        made.append(
            [
                *(arm, *trained),
                means[0] + (f" ({min(spread):.4f}…{max(spread):.4f})" if len(spread) > 1 else ""),
                *means[1:],
                *("–" if gap is None else shown(gap, digits) for gap, digits in zip(gaps, (4, 2), strict=True)),
            ]
        )
    return made


def verdicts(figures: dict[str, Any]) -> list[str]:
    """Say of each target whether it was met."""
    said = []
    for rate in RATES:
        rows = figures[str(rate)]
        if OURS not in rows or not {SENSE, L1_WAVELET} & set(rows):
            continue
        for measure, wanted in WANTED[rate].items():
            arm, digits = better_classical(rows, measure), MEASURES[measure]
            gap = rows[arm][TEST][measure]["ours_minus_it"]
            unit = " dB" if measure == "psnr_db" else ""
            name = "PSNR" if measure == "psnr_db" else "SSIM"
            word = "met" if gap[0] >= wanted else "missed"
            asked = f"{rate}×, {name} over {arm}, the better classical method (≥ {wanted}{unit})"
            said.append(f"- {asked}: {shown(gap, digits)}{unit}, {word}")
        if UNET in rows:
            gap = rows[UNET][TEST]["ssim"]["ours_minus_it"]
            word = "met" if gap[0] > 0 else "missed"
            said.append(f"- {rate}×, SSIM over the U-Net of equal size (> 0): {shown(gap, 4)}, {word}")
    return said


def choices(cells: list[Cell]) -> list[str]:
    """Say what was chosen on the validation images."""
    said = []
    for cell in cells:
        if "chosen" in cell and cell["arm"] != CLASSICAL[0]:
            for measure, setting in cell["chosen"].items():
                best = max(row[measure] for row in cell["grid"])
                told = ", ".join(f"{name} {value}" for name, value in setting.items())
                said.append(f"- {cell['arm']}, {cell['rate']}×, by {measure}: {told} (validation {best:.4g})")
    for arm in NETWORKS:
        tried = {
            cell["learning_rate"]: float(np.mean(np.array(cell["validation"]["ssim"], float)))
            for cell in cells
            if cell["arm"] == arm and cell["seed"] == CHOICE_SEED
        }
        if tried:
            best = max(tried, key=lambda rate: np.nan_to_num(tried[rate], nan=-1))
            told = ", ".join(
                f"{rate:g}: {'diverged' if np.isnan(ssim) else f'{ssim:.4f}'}" for rate, ssim in sorted(tried.items())
            )
            used = {cell["learning_rate"] for cell in cells if cell["arm"] == arm and cell["seed"] in SEEDS} or {best}
            failed = "" if best in used else f"; with {best:g} whole trainings diverged"
            said.append(
                f"- {arm}: learning rate {' and '.join(f'{rate:g}' for rate in sorted(used))}, by validation SSIM of "
                f"short runs ({told}){failed}"
            )
    return said


def missing(cells: list[Cell]) -> list[str]:
    """Name the cells that are not finished."""
    there = {(cell["arm"], cell["rate"], cell["seed"]) for cell in cells}
    asked = [(arm, rate, 0) for arm in CLASSICAL for rate in RATES]
    asked += [(arm, rate, seed) for arm in NETWORKS for seed in SEEDS for rate in RATES]
    return [f"{arm} {rate}× seed {seed}" for arm, rate, seed in asked if (arm, rate, seed) not in there]


def text_of(cells: list[Cell], figures: dict[str, Any]) -> str:
    """Write the report."""
    head = (
        "method | seeds | parameters | steps | SSIM (lowest…highest seed) | PSNR, dB | NMSE "
        "| PromptMR+ minus it: SSIM (95 %) | PSNR, dB (95 %)"
    )
    parts = [
        "Semi-synthetic data: real cardiac magnitude images of 128², 70 for training, 10 for validation, 20 for the "
        "test, split by image (subjects are not known); a smooth phase, 8 coils and noise of .005 are drawn. Lines: "
        "every 4th or 8th, and a centre of 8 %. Every network is trained for the time that PromptMR+ takes for "
        f"{OUR_STEPS:,} steps, about five CPU-minutes, with 1 − SSIM as its loss, for three quarters of the time on "
        "bands of 32 rows. Intervals: 10,000 draws of images, in pairs, and of seeds. The classical settings are "
        "chosen for each measure by itself: SSIM with one setting, PSNR and NMSE with another.",
        "\n".join(verdicts(figures)),
    ]
    for rate in RATES:
        if figures[str(rate)]:
            parts += [f"**{rate}×**, 20 test images", table(head, rows_of(figures[str(rate)], TEST))]
    for rate in RATES:
        if figures[str(rate)]:
            parts += [
                f"**{rate}×**, another distribution: 2 brain images, and a knee and a brain whose k-space is real, all "
                "under drawn coils; 4 images, which are too few to conclude from",
                table(head, rows_of(figures[str(rate)], OTHERS)),
            ]
    parts += ["Chosen on the validation images:", "\n".join(choices(cells))]
    parts.append("Not finished: " + (", ".join(missing(cells)) or "nothing") + ".")
    return "\n\n".join(part for part in parts if part)


def pictured(cells: list[Cell], folder: Path) -> Iterator[tuple[str, Tensor, float]]:
    """Yield method, test image and its SSIM, of a network the first seed that is kept in `folder`."""
    of_rate = sorted((cell for cell in cells if cell["rate"] == PICTURED_RATE), key=lambda cell: cell["seed"])
    sampled, (kspace, _) = lines(PICTURED_RATE), held_out(TEST)[PICTURED]
    for arm in (*CLASSICAL, *NETWORKS):
        for cell in of_rate:
            kept = folder / f"{arm.replace(' ', '_').replace(',', '')}_{PICTURED_RATE}x_{cell['seed']}.pt"
            if cell["arm"] != arm or (arm in NETWORKS and not kept.exists()):
                continue
            if arm in NETWORKS:
                image = torch.load(kept)[PICTURED]
            else:
                setting = cell["chosen"]["ssim"]
                maps = estimated_maps(setting["maps"], kspace, sampled) if "maps" in setting else torch.empty(0)
                image = classical(arm, setting, maps)(kspace, sampled, NUM_CENTER)[0]
            yield arm, image, cell[TEST]["ssim"][PICTURED]
            break


def draw(cells: list[Cell], path: Path, folder: Path) -> None:
    """Draw one test image by every method, with its error."""
    target = held_out(TEST)[PICTURED][1][0]
    shown_arms = list(pictured(cells, folder))
    figure = Figure(figsize=(1.9 * (len(shown_arms) + 1), 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, len(shown_arms) + 1)
    peak = float(target.max())
    for axis in (*top, *bottom):
        axis.set_axis_off()
    look = {"cmap": "gray", "vmin": 0, "vmax": 0.7 * peak}
    top[0].imshow(target, **look)
    top[0].set_title("target", fontsize=9)
    bottom[0].text(0.5, 0.5, f"|error| × {ERROR_GAIN}", ha="center", va="center", transform=bottom[0].transAxes)
    for (arm, image, ssim), above, below in zip(shown_arms, top[1:], bottom[1:], strict=True):
        above.imshow(image, **look)
        above.set_title(f"{arm.replace(', ', chr(10))}\nSSIM {ssim:.3f}", fontsize=9)
        below.imshow(ERROR_GAIN * (image - target).abs(), **look)
    figure.suptitle(f"A test image at {PICTURED_RATE}×, one seed of every network", fontsize=10)
    figure.savefig(path, dpi=90)


def write_report(cells: list[Cell], results: Path, folder: Path) -> None:
    """Write `reconstruction_quality.md`, `.json` and `.png`."""
    figures = figures_of(cells)
    text = text_of(cells, figures)
    (results / "reconstruction_quality.md").write_text(text + "\n")
    (results / "reconstruction_quality.json").write_text(
        json.dumps({"by_rate": figures, "missing": missing(cells)}, indent=1) + "\n"
    )
    draw(cells, results / "reconstruction_quality.png", folder)
    print(text)
