"""Pictures of a run that trains a reconstruction: its curves, and one slice at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from voxelwave.jobs.reconstruct.batch import ReconstructionBatch
from voxelwave.ops.loggers import printable
from voxelwave.physics.fourier import center_crop
from voxelwave.physics.sampled_lines import as_lines
from voxelwave.reports.comparisons import draw_comparison
from voxelwave.reports.plots import draw_smoothed, new_figure, series
from voxelwave.unrolled.zero_filled import zero_filled

CURVES = {"loss": "loss", "nmse": "normalised error", "learning_rate": "learning rate", "grad_norm": "gradient's norm"}
SCHEDULED = ("learning_rate",)  # of which a running mean would show what never was


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
    """Draw target, zero-filled image, reconstruction and error of a slice on one scale, and which lines were sampled.

    Without a target there is no error.
    """
    filled = center_crop(zero_filled(batch.kspace, batch.sampled), (image.shape[-2], image.shape[-1]))
    target = {} if batch.target is None else {"target": batch.target[0].numpy()}
    lines = as_lines(batch.sampled)[0]
    draw_comparison(
        {**target, "zero-filled": filled[0].numpy(), "reconstruction": image[0].numpy()},
        {"reconstruction": printable(batch.files[0])},
        lines.numpy() if lines.ndim == 1 else None,
        "",
        path,
        target=next(iter(target), None),
        reconstruction="reconstruction",
    )
