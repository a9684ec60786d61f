"""Pictures of a study: scores over the drop rate, and what the masks look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.image import imread
from numpy import ndarray
from torch import Tensor

from voxelwave.jobs.subsample.scoring import Scores
from voxelwave.jobs.subsample.study.summary import Row, radial_density
from voxelwave.physics.fourier import ifft2c
from voxelwave.reports.comparisons import bare
from voxelwave.reports.plots import new_figure

DPI, SIDE = 90, 1.9
DECADES = 4  # of the point-spread function that are shown


def draw_psnr(rows: Sequence[Row], without_network: Mapping[tuple[str, float], Sequence[Scores]], path: Path) -> None:
    """Draw the PSNR on the test over the drop rate: with the network, and of the masks alone."""
    figure = new_figure(13, 4.5)
    left, right = figure.subplots(1, 2, sharey=True)
    for mask in dict.fromkeys(row.mask for row in rows):
        of = sorted((row for row in rows if row.mask == mask), key=lambda row: row.drop_rate)
        left.plot([row.drop_rate for row in of], [row.test["psnr_db"] for row in of], marker=".", label=mask)
        right.plot([row.drop_rate for row in of], [row.filled["psnr_db"] for row in of], marker=".", label=mask)
    shown = {row.mask for row in rows} | {"half_plane_of_magnitudes"}
    for name in dict.fromkeys(name for name, _ in without_network):
        points = [
            (rate, fmean(of.summary()["psnr_db"] for of in scores))
            for (mask, rate), scores in without_network.items()
            if mask == name
        ]
        if name not in shown:
            right.plot(*zip(*sorted(points), strict=True), linestyle="--", linewidth=1, label=name)
    left.set(title="with the network", xlabel="drop rate", ylabel="PSNR in dB, test")
    right.set(title="masks alone (zero-filled; half-plane: completed)", xlabel="drop rate")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=DPI)


def draw_density(rows: Sequence[Row], path: Path) -> None:
    """Draw which share of each ring around the origin the masks keep, a panel for each drop rate."""
    rates = sorted({row.drop_rate for row in rows})
    across = min(len(rates), 4)
    down = -(-len(rates) // across)
    figure = new_figure(3.4 * across, 2.6 * down)
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for axis, rate in zip(axes, rates, strict=False):
        for row in rows:
            if row.drop_rate == rate:
                axis.plot(*radial_density(row.cases[0].sampled), label=row.mask)
        axis.set(title=f"drop rate {rate:g}", xlabel="distance from the origin, half-sides", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    for axis in axes[len(rates) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=DPI)


def draw_spread(rows: Sequence[Row], path: Path) -> None:
    """Draw mask and point-spread function of every mask, a row for each drop rate."""
    rates, masks = sorted({row.drop_rate for row in rows}), list(dict.fromkeys(row.mask for row in rows))
    figure = new_figure(SIDE * 2 * len(masks), SIDE * len(rates) + 0.4)
    axes = figure.subplots(len(rates), 2 * len(masks), squeeze=False)
    for line, rate in zip(axes, rates, strict=True):
        for axis in line:
            axis.set_axis_off()
        for row in rows:
            if row.drop_rate != rate:
                continue
            place = 2 * masks.index(row.mask)
            for axis in line[place : place + 2]:
                axis.set_axis_on()
            sampled = row.cases[0].sampled
            line[place].imshow(sampled.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            bare(line[place], f"{row.mask}, {rate:g}", "")
            line[place + 1].imshow(point_spread(sampled), cmap="magma", vmin=-DECADES, vmax=0)
            bare(line[place + 1], "point spread, log10", "")
    figure.savefig(path, dpi=DPI)


def point_spread(sampled: Tensor) -> Float[ndarray, "height width"]:
    """Return the common logarithm of the image of a point whose k-space a mask sampled, its highest value 0."""
    spread = ifft2c(sampled.to(torch.complex64)).abs()
    decades: ndarray = np.log10(np.maximum((spread / spread.max()).numpy(), 10.0**-DECADES))
    return decades


def draw_evolution(masks: Sequence[Path], path: Path) -> None:
    """Draw how a learned mask came about, from pictures of it that are named after their epochs."""
    figure = new_figure(SIDE * len(masks), SIDE + 0.3)
    for axis, mask in zip(figure.subplots(1, len(masks), squeeze=False)[0], masks, strict=True):
        axis.imshow(imread(mask), interpolation="nearest")
        bare(axis, f"epoch {int(mask.stem.removeprefix('epoch_'))}", "")
    figure.savefig(path, dpi=DPI)
