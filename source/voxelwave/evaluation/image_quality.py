"""How near a reconstructed volume comes to its target: error, signal to noise, structural similarity."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from voxelwave.losses.image_mask import Anatomy, challenge_mask
from voxelwave.losses.structural_similarity import structural_similarity

Volume = Float[Tensor, "slice height width"]
# Each slice's largest value, the volume's, or a number: fastMRI's files have it as the attribute `max`.
DataRange = Literal["slice", "volume"] | float


def data_ranges(target: Volume, data_range: DataRange) -> Float[Tensor, " slice"]:
    """Return the data range of each slice, in double precision."""
    if data_range == "slice":
        return target.double().amax((-2, -1))
    if data_range == "volume":
        return target.double().max().expand(len(target))
    return torch.full((len(target),), float(data_range), dtype=torch.float64, device=target.device)


def psnr_db(predicted: Volume, target: Volume, *, data_range: DataRange = "volume") -> float:
    """Return the peak signal to noise ratio of the volume; with the range of each slice, the mean over slices.

    Infinite where the two are equal.
    """
    error = (predicted.double() - target.double()).square()
    power = error.mean((-2, -1)) if data_range == "slice" else error.mean()[None]
    peak = data_ranges(target, data_range)[: len(power)]
    return float((10 * torch.log10(peak.square() / power)).mean())


def nmse(predicted: Volume, target: Volume) -> float:
    """Return the squared error of the volume in units of the target's squares."""
    error = (predicted.double() - target.double()).square().sum()
    return float(error / target.double().square().sum())


def ssim_of_slices(
    predicted: Volume,
    target: Volume,
    *,
    data_range: DataRange = "volume",
    inside: Bool[Tensor, "slice height width"] | None = None,
) -> Float[Tensor, " slice"]:
    """Return the structural similarity of each slice; raises as `structural_similarity` does.

    Both volumes are multiplied by `inside` first; the data range stays that of the whole target.
    """
    ranges = data_ranges(target, data_range)
    if inside is not None:
        predicted, target = predicted * inside, target * inside
    return structural_similarity(predicted, target, data_range=ranges)


def ssim(
    predicted: Volume,
    target: Volume,
    *,
    data_range: DataRange = "volume",
    inside: Bool[Tensor, "slice height width"] | None = None,
) -> float:
    """Return the mean of `ssim_of_slices`."""
    return float(ssim_of_slices(predicted, target, data_range=data_range, inside=inside).mean())


def challenge_ssim(predicted: Volume, target: Volume, *, anatomy: Anatomy, data_range: DataRange = "volume") -> float:
    """Return `ssim` inside of the target's `challenge_mask`."""
    return ssim(predicted, target, data_range=data_range, inside=challenge_mask(target, anatomy=anatomy))
