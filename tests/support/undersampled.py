"""Small multi-coil k-space with lines left out, and the image that it is of."""

from typing import NamedTuple

import torch
from torch import Tensor

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import expand, sample
from voxelwave.physics.coil_maps import birdcage_maps
from voxelwave.physics.fourier import fft2c


class Undersampled(NamedTuple):
    """k-space `[batch, slice, coil, H, W]`, sampled lines `[batch, W]`, maps `[coil, H, W]`, image without coils."""

    kspace: Tensor
    sampled: Tensor
    maps: Tensor
    image: Tensor


def smooth_image(height: int, width: int, *, key: object = 0) -> Tensor:
    """A bright ellipse with waves in it, complex, the same for the same key."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    a, b = (4 * torch.rand(2, generator=torch_generator(key)) + 2).tolist()
    inside = (x**2 / 0.5 + y**2 / 0.7 < 1).float()
    return torch.polar(inside * (1 + 0.4 * torch.sin(a * x) * torch.cos(b * y)), 0.3 * (x + y))


def every_other_line(width: int, *, spacing: int = 2, center: int = 8) -> Tensor:
    """Which lines are sampled: every `spacing`-th of them, and `center` around the origin."""
    lines = torch.arange(width)
    return (lines % spacing == width // 2 % spacing) | ((lines - width // 2 + center // 2) // center == 0)


def undersampled(
    *,
    batch: int = 2,
    slices: int = 3,
    coils: int = 4,
    shape: tuple[int, int] = (24, 20),
    spacing: int = 2,
    center: int = 8,
) -> Undersampled:
    """Noise-free k-space; what is not sampled is NaN, so that a test fails where it is read."""
    image = torch.stack([smooth_image(*shape, key=index) for index in range(batch * slices)])
    image = image.view(batch, slices, *shape)
    maps = birdcage_maps(coils, shape)
    sampled = every_other_line(shape[1], spacing=spacing, center=center).repeat(batch, 1)
    whole = fft2c(expand(image, maps))
    places = sampled[:, None, None].expand(-1, -1, shape[0], -1)
    gaps = torch.full_like(whole, torch.nan)
    kspace = torch.where(places.unsqueeze(2), whole, gaps)
    assert sample(kspace, places).isfinite().all()
    return Undersampled(kspace, sampled, maps, image)
