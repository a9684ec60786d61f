"""K-space as a scanner would have measured it, made of magnitude images of any kind."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex64, Float, Float32
from torch import Tensor

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import complex_noise, expand, root_sum_of_squares, sample
from voxelwave.physics.coil_maps import birdcage_maps
from voxelwave.physics.fourier import center_crop, fft2c, ifft2c

Kspace = Complex64[Tensor, "slice coil height width"]


def synthesize_kspace(
    images: Float[Tensor, "slice rows columns"],
    *,
    num_coils: int = 8,
    noise: float = 0.005,
    correlation: float = 0.0,
    oversampling: int = 1,
    seed: int = 0,
) -> Kspace:
    """Return the k-space of magnitude images under a ring of coils, with a smooth phase and noise.

    Coils, phase and noise follow from `seed`; coils and phase are those of the whole volume.

    Args:
        noise: standard deviation of the complex noise of a coil, in units of the largest value of `images`.
        correlation: of the noise of neighbouring coils, see `coil_noise`.
        oversampling: how much longer the field of view is along the read-out than the images: air on both sides.

    Raises ValueError for settings out of range.
    """
    if oversampling < 1:
        raise ValueError(f"oversampling must be at least 1, got {oversampling}")
    generator = torch_generator(seed, "scanner")
    rows, columns = images.shape[1:]
    turn, phase = (torch.rand(2, generator=generator) * 2 * math.pi).tolist()
    above = (oversampling * rows) // 2 - rows // 2
    padded = F.pad(images.float(), (0, 0, above, (oversampling - 1) * rows - above))
    height = padded.shape[1]
    seen = torch.polar(padded, smooth_phase((height, columns), generator).expand_as(padded))
    maps = birdcage_maps(num_coils, (height, columns), rotation=turn, phase=phase)
    kspace = fft2c(expand(seen, maps))
    num_samples = len(images) * height * columns
    added = coil_noise(num_coils, num_samples, generator, sigma=noise * float(images.max()), correlation=correlation)
    measured: Kspace = kspace + added.unflatten(1, (len(images), height, columns)).movedim(1, 0)
    return measured


def smooth_phase(shape: tuple[int, int], generator: torch.Generator) -> Float32[Tensor, "height width"]:
    """Return a phase in radians that bends by up to half a turn and has no slope, so that k-space stays centred."""
    y, x = (torch.linspace(-1, 1, side) for side in shape)
    bends = math.pi / 2 * (2 * torch.rand(3, generator=generator) - 1)
    offset = 2 * math.pi * torch.rand((), generator=generator)
    return offset + bends[0] * y[:, None] ** 2 + bends[1] * x**2 + bends[2] * y[:, None] * x


def coil_noise(
    num_coils: int, num_samples: int, generator: torch.Generator, *, sigma: float, correlation: float = 0.0
) -> Complex64[Tensor, "coil sample"]:
    """Return noise of standard deviation `sigma` in which each coil has a share of its neighbour in the ring.

    `correlation`, from 0 to below 1, is the weight of that share; a noise scan is made of the same.
    Raises ValueError for a correlation out of range.
    """
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation lies between 0 and 1, got {correlation}")
    white = complex_noise((num_coils, num_samples), generator, sigma=sigma)
    return (white + correlation * white.roll(1, 0)) / math.hypot(1, correlation)


def target_of(kspace: Kspace, size: tuple[int, int]) -> Float32[Tensor, "slice rows columns"]:
    """Return the images to be reconstructed: root sum of squares over the coils, the middle of `size`."""
    return center_crop(root_sum_of_squares(ifft2c(kspace)), size).contiguous()


def zero_filled(
    kspace: Kspace, sampled: Bool[Tensor, " width"], size: tuple[int, int]
) -> Float32[Tensor, "slice rows columns"]:
    """Return the images of what is sampled, with 0 for all else."""
    return target_of(sample(kspace, sampled.expand(kspace.shape[-2], -1)), size)
