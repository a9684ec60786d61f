"""Pictures of a run that trains a reconstruction: its curves, and one slice at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from voxelwave.jobs.reconstruct.data import ReconstructionBatch
from voxelwave.physics.fourier import center_crop
from voxelwave.reports.plots import draw_smoothed, new_figure, series
from voxelwave.unrolled.zero_filled import zero_filled

CURVES = {"loss": "loss", "nmse": "normalised error", "learning_rate": "learning rate", "grad_norm": "gradient's norm"}
SCHEDULED = ("learning_rate",)  # of which a running mean would show what never was
ERROR_SCALE = 5


def draw_training(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what was recorded over the steps, with its running mean, and what validation measured as points."""
    figure = new_figure(14, 7)
    for axis, (name, title) in zip(figure.subplots(2, 2).flat, CURVES.items(), strict=True):
        steps, values = series(records, name)
        if name in SCHEDULED:
            axis.plot(steps, values)
        elif steps:
            draw_smoothed(axis, steps, values, colour="C0", label="training")
        if found := series(records, f"validation_{name}")[0]:
            axis.plot(found, series(records, f"validation_{name}")[1], color="C1", marker=".", label="validation")
        axis.set(title=title, xlabel="step")
        if axis.lines and name not in SCHEDULED:
            axis.legend()
    figure.savefig(path, dpi=90)


def draw_example(batch: ReconstructionBatch, image: Float[Tensor, "1 rows columns"], path: Path) -> None:
    """Draw target, zero-filled image, reconstruction and error of a slice on one scale, and what was sampled."""
    filled = zero_filled(batch.kspace, batch.sampled)
    target = batch.target
    if target is not None:
        filled = center_crop(filled, (target.shape[-2], target.shape[-1]))
    panels = {"zero-filled": filled[0], "reconstruction": image[0]}
    if target is not None:
        error = (image - target).abs() * ERROR_SCALE
        panels = {"target": target[0], **panels, f"{ERROR_SCALE} × error": error[0]}
    white = float(torch.quantile((target if target is not None else image).flatten().float(), 0.999)) or 1.0
    figure = new_figure(3.2 * (len(panels) + 1), 3.6)
    *axes, last = figure.subplots(1, len(panels) + 1)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        axis.imshow(panel.numpy(), cmap="gray", vmin=0, vmax=white)
        axis.set(title=title, xticks=[], yticks=[])
    last.imshow(batch.sampled[0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    last.set(title="sampled", xticks=[], yticks=[])
    figure.suptitle(batch.files[0])
    figure.savefig(path, dpi=90)
