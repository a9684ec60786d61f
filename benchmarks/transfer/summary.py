"""What the cells of the transfer study say together: tables, differences seed by seed, and a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from arms import CT_ONLY, FEATURES, MAE, MRI_ONLY, NOISE_ONLY, OURS, WITHOUT_INFONCE
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tasks import FULL_RATE, MORE_STEPS, RANDOM, RAW, SCRATCH, STEPS, TIME_OF_MAE
from volumes import LABELLED

Cell = dict[str, Any]
LADDER = (1, 2, 4, 8, LABELLED)
FEW = (1, 4)  # where not every number is tried
LADDERS = ("generated mri", "generated ct")
SEEDS = 3
ORDER = (SCRATCH, OURS, MAE, WITHOUT_INFONCE, FEATURES, MRI_ONLY, CT_ONLY, NOISE_ONLY)


def of(cells: Iterable[Cell], **wanted: Any) -> list[Cell]:
    """Return the cells with these values, by seed."""
    chosen = [cell for cell in cells if all(cell.get(key) == value for key, value in wanted.items())]
    return sorted(chosen, key=lambda cell: int(cell["seed"]))


def shown(values: Sequence[float]) -> str:
    """Write a mean and its range over the seeds, in points, and of how many seeds where some are missing."""
    if not values:
        return "–"
    spread = f" ({100 * min(values):.1f}…{100 * max(values):.1f})" if len(values) > 1 else ""
    missing = f" [{len(values)} of {SEEDS} seeds]" if len(values) < SEEDS else ""
    return f"{100 * statistics.mean(values):.1f}{spread}{missing}"


def table(cells: Sequence[Cell], columns: Sequence[tuple[str, dict[str, Any]]], head: str) -> str:
    """Write the arms as rows; a column is a title and what its cells have in common."""
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    lines = [f"| {head} | " + " | ".join(title for title, _ in columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for arm in arms:
        values = [shown([cell["score"] for cell in of(cells, arm=arm, **wanted)]) for _, wanted in columns]
        if set(values) != {"–"}:
            lines.append(f"| {arm} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def differences(cells: Sequence[Cell], task: str, labels: int | None, first: str, second: str) -> list[float]:
    """Return `first` minus `second` for every seed that has both."""
    by_seed = {cell["seed"]: cell["score"] for cell in of(cells, task=task, arm=second, labels=labels)}
    own = of(cells, task=task, arm=first, labels=labels)
    return [cell["score"] - by_seed[cell["seed"]] for cell in own if cell["seed"] in by_seed]


def compared(cells: Sequence[Cell], pairs: Sequence[tuple[str, int | None, str, str]]) -> str:
    """Write differences in points, seed by seed; a pair is a task, a number of labels, and two arms."""
    lines = ["| task | labels | difference | by seed, points | mean |", "| --- " * 5 + "|"]
    for task, labels, first, second in pairs:
        if found := differences(cells, task, labels, first, second):
            seeds = ", ".join(f"{100 * value:+.1f}" for value in found)
            mean = f"**{100 * statistics.mean(found):+.1f}**"
            lines.append(f"| {task} | {labels or '–'} | {first} − {second} | {seeds} | {mean} |")
    return "\n".join(lines)


def draw(cells: Sequence[Cell], ladders: Sequence[str], singles: Sequence[str], path: Path) -> None:
    """Draw Dice over the number of labelled volumes, and, of tasks with one, a bar for each arm fine-tuned alike."""
    figure = Figure(figsize=(5 * len(ladders) + 7, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    arms = [arm for arm in ORDER if len({cell["seed"] for cell in of(cells, arm=arm)}) == SEEDS]
    colours = {arm: f"C{number}" for number, arm in enumerate(arms)}
    axes = figure.subplots(1, len(ladders) + 1, width_ratios=[1] * len(ladders) + [1.3])
    for task, axis in zip(ladders, axes, strict=False):
        for arm in arms:
            own = of(cells, task=task, arm=arm)
            # Means of fewer seeds are no match for the others.
            counts = [count for count in LADDER if len(of(own, labels=count)) == SEEDS]
            by_count = [[cell["score"] for cell in own if cell["labels"] == count] for count in counts]
            if not counts:
                continue
            means = [statistics.mean(scores) for scores in by_count]
            errors = [
                [mean - min(scores) for mean, scores in zip(means, by_count, strict=True)],
                [max(scores) - mean for mean, scores in zip(means, by_count, strict=True)],
            ]
            # Side by side, so that no arm hides another's range.
            places = [count * 2 ** (0.05 * (arms.index(arm) - len(arms) / 2)) for count in counts]
            line = "-" if len(counts) > len(FEW) else ":"
            axis.errorbar(places, means, errors, fmt=f"o{line}", capsize=2, ms=4, label=arm, color=colours[arm])
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({cell["labels"] for cell in of(cells, task=task)}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(title=task, xlabel="labelled volumes", ylabel="mean Dice, test subjects")
    width = 0.8 / max(1, len(arms))
    for number, arm in enumerate(arms):
        for place, task in enumerate(singles):
            scores = [cell["score"] for cell in of(cells, task=task, arm=arm)]
            if len(scores) == SEEDS:
                at = place + (number - len(arms) / 2 + 0.5) * width
                axes[-1].bar(at, statistics.mean(scores), width, color=colours[arm])
                axes[-1].plot([at] * len(scores), scores, "k.", markersize=3)
    axes[-1].set_xticks(range(len(singles)), [task.removeprefix("real ") for task in singles], rotation=15)
    axes[-1].set(title="real scans, one labelled", ylabel="mean Dice")
    lines = {text: line for axis in axes[:-1] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [lines[arm] for arm in arms if arm in lines], [arm for arm in arms if arm in lines], loc="outside right"
    )
    figure.savefig(path, dpi=90)


def probes(cells: Sequence[Cell]) -> list[Cell]:
    """Return a cell for every measure of every probe, with random weights and raw voxels as arms of their own."""
    flat = []
    for cell in cells:
        for result in cell.get("results", ()):
            if result["probe"].startswith("none"):  # gauges, which are no shares
                continue
            task = f"{result['task']}, {result['probe']}"
            flat.append({"task": task, "arm": cell["arm"], "seed": cell["seed"], "score": result["pretrained"]})
            if cell["arm"] == OURS:  # the same for every arm of its architecture
                flat += [
                    {"task": task, "arm": reference, "seed": cell["seed"], "score": result[reference]}
                    for reference in (RANDOM, RAW)
                    if reference in result  # cells of before have no raw voxels
                ]
    return flat


def write_report(cells: Sequence[Cell], steps: dict[str, int], folder: Path) -> None:
    """Write `transfer.md`, `transfer.json` and `transfer.png` of the cells that are filled."""
    cells = sorted(cells, key=lambda cell: ORDER.index(cell["arm"]))
    scored = [cell | {"arm": _named(cell)} for cell in cells if "score" in cell]
    real = sorted({cell["task"] for cell in scored if cell["task"].startswith("real")}, reverse=True)
    questions = [
        *((task, count, OURS, SCRATCH) for task in LADDERS for count in LADDER),
        *((task, count, OURS, MAE) for task in LADDERS for count in LADDER),
        *(("generated mri", count, f"{OURS}, {TIME_OF_MAE} steps", MAE) for count in FEW),
        *(
            ("generated mri", count, f"{OURS}, {MORE_STEPS} steps{rate}", f"{SCRATCH}, {MORE_STEPS} steps{rate}")
            for count in FEW
            for rate in ("", ", full rate")
        ),
        *(("generated ct", count, OURS, other) for other in (CT_ONLY, MRI_ONLY) for count in LADDER),
        *(("generated mri", count, OURS, MRI_ONLY) for count in FEW),
        *((task, count, NOISE_ONLY, SCRATCH) for task in LADDERS for count in FEW),
        *((task, count, OURS, WITHOUT_INFONCE) for task in LADDERS for count in LADDER),
        *((task, 1, OURS, other) for task in real for other in (SCRATCH, MAE, WITHOUT_INFONCE, CT_ONLY, MRI_ONLY)),
    ]
    ladder = [(str(count), {"labels": count}) for count in LADDER]
    probed = probes(cells)
    measures = list(dict.fromkeys(cell["task"] for cell in probed))
    parts = [
        "# Transfer",
        f"Mean Dice of test subjects in points: mean over seeds (lowest…highest). Steps of pretraining: {steps}.",
        *(f"## {task}: labelled volumes\n\n" + table(of(scored, task=task), ladder, "arm") for task in LADDERS),
        "## Real scans, one labelled\n\n"
        + table([c for c in scored if c["task"] in real], [(task, {"task": task}) for task in real], "arm"),
        "## Differences\n\n" + compared(scored, questions),
        "## Probes of frozen features\n\n" + transposed(probed, measures),
        "### Gains of probes\n\n"
        + compared(probed, [(measure, None, OURS, reference) for measure in measures for reference in (RANDOM, RAW)]),
    ]
    (folder / "transfer.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "transfer.json").write_text(json.dumps({"steps": steps, "cells": list(cells)}, indent=1) + "\n")
    draw(scored, LADDERS, real, folder / "transfer.png")


def _named(cell: Cell) -> str:
    """Name an arm, with what differs from the others in how it is fine-tuned."""
    steps = "" if cell["steps"] == STEPS else f", {cell['steps']} steps"
    return f"{cell['arm']}{steps}{', full rate' if cell['lr_scale'] == FULL_RATE else ''}"


def transposed(cells: Sequence[Cell], tasks: Sequence[str]) -> str:
    """Write the tasks as rows and the arms as columns."""
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    lines = ["| probe | " + " | ".join(arms) + " |", "| --- " * (len(arms) + 1) + "|"]
    for task in tasks:
        values = (shown([cell["score"] for cell in of(cells, task=task, arm=arm)]) for arm in arms)
        lines.append(f"| {task} | " + " | ".join(values) + " |")
    return "\n".join(lines)
