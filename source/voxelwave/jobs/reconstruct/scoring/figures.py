"""Pictures of an evaluation: maps of the coils, and the scores of all volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from voxelwave.reports.comparisons import DPI, bare
from voxelwave.reports.plots import new_figure

FEW = 40  # volumes of a box whose points are drawn, too


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
            bare(axis, f"coil {number}", "")
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
