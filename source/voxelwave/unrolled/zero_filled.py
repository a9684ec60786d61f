"""The image of what was sampled, with 0 elsewhere: where every reconstruction begins."""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from voxelwave.contracts import NumLines
from voxelwave.physics.acquisition import root_sum_of_squares, sample
from voxelwave.physics.fourier import ifft2c
from voxelwave.physics.sampled_lines import sampled_places

Volumes = Complex[Tensor, "batch slice coil height width"]


def zero_filled_coils(kspace: Volumes, sampled: Bool[Tensor, "batch ... width"]) -> Volumes:
    """Return the complex image of each coil and slice."""
    return ifft2c(sample(kspace, sampled_places(sampled, kspace.shape[-2])[:, None]))


def coil_groups(num_coils: int, at_once: int | None) -> list[slice]:
    """Return ranges of at most `at_once` coils, one range of all for None; raises ValueError for less than 1.

    What is summed over coils, or is another for each, then takes the memory of one group at a time. For a gradient all
    of them are kept, so that there is one range.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"coils_at_once is at least 1, or None for all of them, got {at_once}")
    size = num_coils if at_once is None or torch.is_grad_enabled() else min(at_once, num_coils)
    return [slice(start, min(start + size, num_coils)) for start in range(0, num_coils, size)]


def zero_filled_magnitude(
    kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], *, coils_at_once: int | None = None
) -> Float[Tensor, "batch slice height width"]:
    """Return the root of the sum of squares over the coils of each slice; raises as `coil_groups` does."""
    groups = coil_groups(kspace.shape[2], coils_at_once)
    return reduce(
        torch.hypot, (root_sum_of_squares(zero_filled_coils(kspace[:, :, group], sampled)) for group in groups)
    )


def zero_filled(
    kspace: Volumes,
    sampled: Bool[Tensor, "batch ... width"],
    num_low_frequencies: NumLines = None,
    *,
    coils_at_once: int | None = None,
) -> Float[Tensor, "batch height width"]:
    """Return the root of the sum of squares over the coils of the centre slice; a `Reconstruction`."""
    center = kspace.shape[1] // 2
    return zero_filled_magnitude(kspace[:, center : center + 1], sampled, coils_at_once=coils_at_once)[:, 0]
