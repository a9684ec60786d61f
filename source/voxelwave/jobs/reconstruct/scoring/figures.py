"""Pictures of an evaluation: a slice as several methods show it, maps of the coils, and the scores of all volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from numpy import ndarray

from voxelwave.reports.plots import new_figure

Image = Float[ndarray, "rows columns"]

ERROR_SCALE = 5
BRIGHTEST = 99.8  # percent, of the target: single bright pixels would leave all else dark
PANEL_INCHES, DPI = 2.3, 100
FEW = 40  # volumes of a box whose points are drawn, too


def draw_comparison(
    images: Mapping[str, Image],
    words: Mapping[str, str],
    sampled: Bool[ndarray, " width"] | None,
    sampled_words: str,
    path: Path,
    *,
    target: str | None,
    reconstruction: str,
) -> None:
    """Draw images by their names, the error of the reconstruction, and which columns were sampled, side by side.

    All share one scale of grey, from 0 to the brightest of the target, or of the reconstruction where there is none.
    `words` stand below the images.
    """
    reference = images[target or reconstruction]
    rows, columns = reference.shape
    white = float(np.percentile(reference, BRIGHTEST)) or 1.0
    panels = dict(images)
    if target is not None:
        panels[f"|error| × {ERROR_SCALE}"] = np.abs(images[reconstruction] - images[target]) * ERROR_SCALE
    count = len(panels) + (sampled is not None)
    figure = new_figure(PANEL_INCHES * count, PANEL_INCHES * rows / columns + 0.8)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis, (title, image) in zip(axes, panels.items(), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
        _bare(axis, title, words.get(title, ""))
    if sampled is not None:
        lines = np.broadcast_to(sampled, (rows, len(sampled)))
        axes[-1].imshow(lines, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes[-1].set_box_aspect(rows / columns)
        _bare(axes[-1], "sampled lines", sampled_words)
    figure.savefig(path, dpi=DPI)


def draw_coil_maps(maps: Float[ndarray, "coil rows columns"], path: Path) -> None:
    """Draw the magnitudes of the maps of all coils on one scale, from 0 to 1."""
    across = min(len(maps), 8)
    down = math.ceil(len(maps) / across)
    rows, columns = maps.shape[1:]
    side = 1.6
    figure = new_figure(side * across, (side * rows / columns + 0.25) * down)
    axes = figure.subplots(down, across, squeeze=False).flat
    for number, axis in enumerate(axes):
        if number < len(maps):
            axis.imshow(maps[number], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            _bare(axis, f"coil {number}", "")
        else:
            axis.set_axis_off()
    figure.savefig(path, dpi=DPI)


def draw_scores(scores: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw a panel for each score: a box for each group of volumes, and the volumes where they are few."""
    groups = max((len(of) for of in scores.values()), default=0)
    figure = new_figure(max(3.4, 1.3 * groups) * len(scores), 3.6)
    for axis, (title, of) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True):
        finite = {name: [value for value in values if math.isfinite(value)] for name, values in of.items()}
        axis.boxplot(list(finite.values()), showfliers=False, widths=0.5, medianprops={"color": "C1"})
        axis.set_xticks(range(1, len(finite) + 1), list(finite))
        for place, values in enumerate(finite.values(), start=1):
            if 0 < len(values) <= FEW:
                beside = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
                axis.plot(place + np.asarray(beside), values, ".", color="C0", alpha=0.7)
        axis.set(title=title)
        axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=DPI)


def _bare(axis: Axes, title: str, words: str) -> None:
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(words, fontsize=8)
