"""From an image to the k-space of several coils, and back: linear operators on complex tensors.

Leading axes are samples of a batch. Maps, or a choice of samples, that lack these axes serve the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from voxelwave.physics.fourier import fft2c, ifft2c


def expand(
    image: Complex[Tensor, "... height width"], maps: Complex[Tensor, "... coil height width"]
) -> Complex[Tensor, "... coil height width"]:
    """Return `image` as each coil sees it."""
    return image.unsqueeze(-3) * maps


def combine(
    coil_images: Complex[Tensor, "... coil height width"], maps: Complex[Tensor, "... coil height width"]
) -> Complex[Tensor, "... height width"]:
    """Return the sum of `coil_images`, each weighted by its conjugate map: the adjoint of `expand`."""
    return (maps.conj() * coil_images).sum(-3)


def sample(
    kspace: Complex[Tensor, "... coil height width"], sampled: Bool[Tensor, "... height width"]
) -> Complex[Tensor, "... coil height width"]:
    """Return `kspace` where it is `sampled`, in the same places for all coils, else 0; it is its own adjoint.

    What is not sampled is not read: it may be NaN.
    """
    return torch.where(sampled.unsqueeze(-3), kspace, 0)


@dataclass(frozen=True)
class MultiCoilAcquisition:
    """What a scanner measures of an image: coils, Fourier transform, samples.

    Source: Pruessmann et al., SENSE, 1999, for samples on a grid.
    """

    maps: Complex[Tensor, "... coil height width"]
    sampled: Bool[Tensor, "... height width"]

    def forward(self, image: Complex[Tensor, "... height width"]) -> Complex[Tensor, "... coil height width"]:
        """Return the k-space of each coil, 0 where it is not sampled."""
        return sample(fft2c(expand(image, self.maps)), self.sampled)

    def adjoint(self, kspace: Complex[Tensor, "... coil height width"]) -> Complex[Tensor, "... height width"]:
        """Return the combined image of the sampled part of `kspace`: the adjoint of `forward`."""
        return combine(ifft2c(sample(kspace, self.sampled)), self.maps)


def root_sum_of_squares(coil_images: Complex[Tensor, "... coil height width"]) -> Float[Tensor, "... height width"]:
    """Return the magnitude of all coils together."""
    # Unlike a root of a sum, the norm has a gradient, 0, where every coil is 0.
    magnitude: Tensor = torch.linalg.vector_norm(coil_images, dim=-3)
    return magnitude


def complex_noise(
    shape: Sequence[int], generator: torch.Generator, *, sigma: float, dtype: torch.dtype = torch.complex64
) -> Complex[Tensor, "..."]:
    """Return circular Gaussian noise with a mean squared magnitude of sigma²: sigma² / 2 for each part.

    Raises ValueError for a sigma that is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma of the noise must be at least 0 and finite, got {sigma}")
    # torch gives each part of a complex normal number half of its variance of 1.
    return torch.randn(tuple(shape), generator=generator, dtype=dtype).mul_(sigma)
