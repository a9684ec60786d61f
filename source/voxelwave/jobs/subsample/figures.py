"""Pictures of one run: its curves, its mask, and one image as it went in and came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.image import imsave
from torch import Tensor

from voxelwave.jobs.subsample.images import ImageSet
from voxelwave.jobs.subsample.scoring import Reconstruct, Scores, score, zero_filled
from voxelwave.ops.files import replacing
from voxelwave.ops.loggers import printable
from voxelwave.reports.comparisons import draw_comparison
from voxelwave.reports.plots import draw_smoothed, new_figure, series
from voxelwave.unrolled.subsampling import Subsampling, image_of

CURVES = {"loss": "squared error in units of the largest value²", "psnr_db": "PSNR in dB"}
LONGEST_NAME = 32  # characters below an image
TARGET, FILLED, RECONSTRUCTION = "target", "subsampled", "reconstruction"


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw error and PSNR over the steps, those of validation as points."""
    figure = new_figure(13, 4)
    for axis, (name, title) in zip(figure.subplots(1, 2), CURVES.items(), strict=True):
        draw_smoothed(axis, *series(records, name), colour="C0", label="training")
        axis.plot(*series(records, f"validation_{name}"), color="C1", marker=".", label="validation")
        axis.set(title=title, xlabel="step")
        axis.legend()
        if name == "loss":
            axis.set_yscale("log")
    figure.savefig(path, dpi=90)


def write_mask(mask: Bool[Tensor, "height width"], path: Path) -> None:
    """Write a mask as a picture of its own size: white is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        imsave(part, mask.cpu().numpy().astype(np.uint8), cmap="gray", vmin=0, vmax=1, format="png")


def draw_example(images: ImageSet, index: int, layer: Subsampling, reconstruct: Reconstruct, path: Path) -> None:
    """Draw one image: whole, as the mask leaves it, reconstructed, its error, and the mask."""
    one = images.one(index)
    ways: dict[str, Reconstruct] = {FILLED: zero_filled(layer), RECONSTRUCTION: reconstruct}
    shown = {TARGET: image_of(one.kspace)[0].abs().numpy()}
    shown |= {name: way(one.kspace)[0].numpy() for name, way in ways.items()}
    words = {name: in_words(score(way, one)) for name, way in ways.items()}
    sampled = layer.mask().numpy()
    draw_comparison(
        shown,
        {TARGET: _end(printable(one.names[0])), **words},
        sampled,
        f"{sampled.mean():.1%} kept",
        path,
        target=TARGET,
        reconstruction=RECONSTRUCTION,
    )


def _end(name: str) -> str:
    """Return as much of the end of a name as has room below an image."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}"


def in_words(scores: Scores) -> str:
    """Say what one image scores."""
    return f"{scores.psnr_db[0]:.2f} dB, SSIM {scores.ssim[0]:.3f}"
