"""One image as several methods show it, beside each other on one scale."""

from __future__ import annotations

from collections.abc import Mapping
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


def draw_comparison(
    images: Mapping[str, Image],
    words: Mapping[str, str],
    sampled: Bool[ndarray, " width"] | Bool[ndarray, "height width"] | None,
    sampled_words: str,
    path: Path,
    *,
    target: str | None,
    reconstruction: str,
) -> None:
    """Draw images by their names, the error of the reconstruction, and which k-space was sampled, side by side.

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
        bare(axis, title, words.get(title, ""))
    if sampled is not None:
        places = sampled if sampled.ndim == 2 else np.broadcast_to(sampled, (rows, len(sampled)))
        axes[-1].imshow(places, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        axes[-1].set_box_aspect(rows / columns)
        bare(axes[-1], "sampled" if sampled.ndim == 2 else "sampled lines", sampled_words)
    figure.savefig(path, dpi=DPI)


def bare(axis: Axes, title: str, words: str) -> None:
    """Leave nothing of an axis but a title above it and words below."""
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(words, fontsize=8)
