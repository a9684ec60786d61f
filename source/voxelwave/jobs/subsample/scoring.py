"""How near reconstructed images come to the whole ones, image by image; the images of the test are opened once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from voxelwave.errors import InputError
from voxelwave.evaluation.image_quality import psnr_db, ssim_of_slices
from voxelwave.jobs.subsample.images import ImageSet
from voxelwave.objectives.subsampled_reconstruction import SubsampledReconstruction
from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.files import write_text
from voxelwave.ops.texts import read_json, to_json
from voxelwave.unrolled.subsampling import image_of

Magnitudes = Float32[Tensor, "image height width"]
Reconstruct = Callable[[Tensor], Magnitudes]
AT_ONCE = 16  # images of which a network keeps what it computes
OPENED = "test_opened.json"


class Scores(NamedTuple):
    """Of each image, in the order of the images; the data range is the largest value of the whole image.

    `error` is the mean squared error of magnitudes in units of that value squared.
    """

    psnr_db: list[float]
    ssim: list[float]
    error: list[float]

    def summary(self) -> dict[str, float]:
        """Return means and deviations over the images, and the PSNR of the mean error: of all images pooled."""
        pooled = fmean(self.error)
        return {
            "psnr_db": fmean(self.psnr_db),
            "psnr_db_deviation": _deviation(self.psnr_db),
            "psnr_db_pooled": float(-10 * torch.tensor(pooled, dtype=torch.float64).log10()),
            "ssim": fmean(self.ssim),
            "ssim_deviation": _deviation(self.ssim),
        }


def _deviation(values: Sequence[float]) -> float:
    """Return the deviation over the images, nan where an image is reproduced exactly, and its PSNR infinite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values) if len(values) > 1 else 0.0


def score(reconstruct: Reconstruct, images: ImageSet) -> Scores:
    """Return the scores of what `reconstruct` makes of whole k-space."""
    psnr, ssim, error = list[float](), list[float](), list[float]()
    for kspace in images.kspace.split(AT_ONCE):
        made, target = reconstruct(kspace), image_of(kspace).abs()
        peak = target.amax((-2, -1)).double()
        error += ((made.double() - target.double()).square().mean((-2, -1)) / peak.square()).tolist()
        psnr += [psnr_db(one[None], whole[None], data_range="slice") for one, whole in zip(made, target, strict=True)]
        ssim += ssim_of_slices(made, target, data_range="slice").tolist()
    return Scores(psnr, ssim, error)


def by_network(objective: SubsampledReconstruction, device: torch.device | None = None) -> Reconstruct:
    """Return what the model behind its mask makes of k-space: magnitudes."""

    def reconstruct(kspace: Tensor) -> Magnitudes:
        with evaluating(objective):
            return objective.image(kspace.to(device)).abs().cpu()

    return reconstruct


def zero_filled(layer: Callable[[Tensor], Tensor]) -> Reconstruct:
    """Return the magnitudes of what a layer keeps."""

    def reconstruct(kspace: Tensor) -> Magnitudes:
        with torch.no_grad():
            return image_of(layer(kspace)).abs()

    return reconstruct


def open_once(folder: Path, weights: str, open_test: Callable[[], ImageSet]) -> ImageSet:
    """Return the images of the test, which this run has not seen, or has seen with the same `weights` alone.

    A record in `folder` says with which weights they were opened, so that nobody chooses others by what they saw.
    Raises InputError where they were opened with other weights.
    """
    record = folder / OPENED
    if record.exists():
        try:
            said: Any = read_json(record)
            opened = str(said["weights"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{record} cannot be read: start a run under another run.name") from None
        if opened != weights:
            raise InputError(
                f"{record}: the test was opened with other weights, and what follows from its scores is no test any "
                "more: start a run under another run.name, with another data.seed"
            )
        return open_test()
    images = open_test()
    write_text(record, to_json({"weights": weights, "images": images.fingerprint}))
    return images


def opened_by_others(folder: Path, images: ImageSet) -> list[str]:
    """Return the runs beside `folder` that scored the same images of a test."""
    found = []
    for record in sorted(folder.parent.glob(f"*/{OPENED}")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            said: Any = read_json(record)
            if record.parent != folder and said["images"] == images.fingerprint:
                found.append(record.parent.name)
    return found


def tuned_on_test(others: Sequence[str]) -> str:
    """Say that the test was opened by other runs before."""
    return (
        f"these images of the test were scored by other runs, too ({', '.join(others)}): where settings were chosen by "
        "that, give another data.seed for the figures that count"
    )
