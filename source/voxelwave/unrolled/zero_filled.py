"""The image of what was sampled, with 0 elsewhere: where every reconstruction begins."""

from __future__ import annotations

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


def zero_filled(
    kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
) -> Float[Tensor, "batch height width"]:
    """Return the root of the sum of squares over the coils of the centre slice; a `Reconstruction`."""
    center = kspace.shape[1] // 2
    return root_sum_of_squares(zero_filled_coils(kspace[:, center : center + 1], sampled))[:, 0]
