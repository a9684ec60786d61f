"""Pictures of a fine-tuning run: its course, segmentations beside the truth, ROC curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.patches import Patch
from numpy import ndarray

from voxelwave.reports.plots import draw_smoothed, new_figure, series

Volume = Float[ndarray, "depth height width"]
Labels = UInt8[ndarray, "depth height width"]

VALIDATION_LOSS = "validation_loss"
OPACITY = 0.6


def draw_course(records: Sequence[Mapping[str, Any]], score: str, path: Path) -> None:
    """Draw the loss of every step, its running mean, and the scores of every validation, each class or target apart."""
    figure = new_figure(12, 4)
    losses, scores = figure.subplots(1, 2)
    draw_smoothed(losses, *series(records, "loss"), colour="C0", label="training")
    validated = [record for record in records if score in record]
    steps, values = series(validated, VALIDATION_LOSS)
    if steps:
        losses.plot(steps, values, color="C1", marker=".", label="validation")
    losses.set(title="loss", xlabel="step")
    losses.legend()
    names = dict.fromkeys(name for record in validated for name in record if name.startswith(score))
    for name in names:
        label = name.removeprefix(f"{score}_") if name != score else "mean"
        scores.plot(*series(validated, name), marker=".", linewidth=2.5 if name == score else 1, label=label)
    scores.set(title=score.replace("_", " "), xlabel="step", ylim=(0, 1))
    if names:
        scores.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def draw_segmentations(rows: Sequence[tuple[str, Volume, Labels, Labels]], classes: Sequence[str], path: Path) -> None:
    """Draw image, truth and prediction of each volume: the axial slice with the most labelled voxels."""
    figure = new_figure(9.5, 3.1 * len(rows) + 0.4)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, max(len(classes), 2)))[:, :3]
    for (name, image, truth, predicted), line in zip(rows, axes, strict=True):
        place = int((truth > 0).sum(axis=(0, 1)).argmax())
        grey = np.repeat(np.clip(image[:, :, place], 0, 1)[..., None], 3, axis=2)
        for axis, labels in zip(line, (None, truth, predicted), strict=True):
            shown = grey.copy()
            if labels is not None:
                inside = labels[:, :, place] > 0
                colour = colours[labels[:, :, place][inside].astype(int) - 1]
                shown[inside] = (1 - OPACITY) * shown[inside] + OPACITY * colour
            axis.imshow(shown.transpose(1, 0, 2), origin="lower", interpolation="nearest")
            axis.set_axis_off()
        line[0].set_title(name, fontsize=9, loc="left")
    for axis, title in zip(axes[0, 1:], ("truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=9)
    patches = [Patch(color=colour, label=name) for name, colour in zip(classes, colours, strict=False)]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)


def draw_roc(
    probabilities: Float[ndarray, "case target"],
    truth: Float[ndarray, "case target"],
    targets: Sequence[str],
    path: Path,
) -> None:
    """Draw the ROC curve of each target with known cases of both kinds; truth is nan where it is not known."""
    from sklearn.metrics import RocCurveDisplay

    figure = new_figure(6, 6)
    axis = figure.subplots()
    for column, name in enumerate(targets):
        known = ~np.isnan(truth[:, column])
        if len(np.unique(truth[known, column])) == 2:
            RocCurveDisplay.from_predictions(
                truth[known, column], probabilities[known, column], name=name, ax=axis, plot_chance_level=False
            )
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axis.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
    figure.savefig(path, dpi=90)
