"""Sensitivities of receive coils that stand in a ring around the image."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def birdcage_maps(
    num_coils: int,
    shape: tuple[int, int],
    *,
    relative_radius: float = 1.5,
    rotation: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    phase: float = 0.0,
    dtype: torch.dtype = torch.complex64,
) -> Complex[Tensor, "coil height width"]:
    """Return the maps of one ring; `batched_birdcage_maps` takes each setting as one number for each sample."""
    settings = (torch.tensor([value], dtype=dtype.to_real()) for value in (relative_radius, rotation, shift, phase))
    radii, rotations, shifts, phases = settings
    return batched_birdcage_maps(
        num_coils, shape, relative_radius=radii, rotation=rotations, shift=shifts, phase=phases
    )[0]


def batched_birdcage_maps(
    num_coils: int,
    shape: tuple[int, int],
    *,
    relative_radius: Float[Tensor, " batch"],
    rotation: Float[Tensor, " batch"],
    shift: Float[Tensor, "batch 2"],
    phase: Float[Tensor, " batch"],
) -> Complex[Tensor, "batch coil height width"]:
    """Return maps whose squared magnitudes sum to 1 over the coils of each pixel, in the precision of the settings.

    A coil's field falls with 1 / distance, and its phase turns with the direction that it is seen from.

    Args:
        num_coils: equally spaced on the ring, the first one on the axis of the width unless turned.
        shape: height and width in pixels.
        relative_radius: of the ring, in half-sides of the image. From √2 on, a centred ring lies outside the image.
        rotation: of the ring with all its fields, in radians, from the axis of the width towards that of the height.
        shift: of the ring's centre along height and width, in half-sides.
        phase: added to every map, in radians.

    Raises ValueError for fewer than one coil, an empty image, or a radius that is not above 0 and finite.
    Source: Roemer et al., The NMR phased array, 1990, for what the maps stand for; the field and its phase are the
    two-dimensional ones of sigpy's birdcage_maps.
    """
    if num_coils < 1 or min(shape) < 1:
        raise ValueError(f"maps need at least one coil and one pixel, got {num_coils} coils for a shape of {shape}")
    if not ((relative_radius > 0) & relative_radius.isfinite()).all():
        raise ValueError(f"relative_radius must be above 0 and finite, got {relative_radius.tolist()}")
    dtype, device = rotation.dtype, rotation.device
    # 1. From each coil to each row and each column, in half-sides. A coil on a pixel is moved a hair beside it.
    angles = rotation[:, None] + torch.arange(num_coils, dtype=dtype, device=device) * (2 * math.pi / num_coils)
    coils = shift[:, None] + relative_radius[:, None, None] * torch.stack([angles.sin(), angles.cos()], 2)
    rows, columns = (torch.arange(side, dtype=dtype, device=device) * (2 / side) - 1 for side in shape)
    y, x = rows - coils[:, :, :1], columns - coils[:, :, 1:]
    hair = torch.finfo(dtype).eps
    x = torch.where(x.abs() < hair, hair, x)
    # 2. With z = x + iy from coil to pixel, the field is i exp(-i angle) / conj(z) = i exp(-i angle) z / |z|².
    turn = torch.polar(torch.ones_like(angles), phase[:, None] - angles + math.pi / 2)[:, :, None]
    maps: Tensor = (y * turn * 1j)[:, :, :, None] + (x * turn)[:, :, None]
    # 3. Divide by |z|², and by the root of the sum of squares. In place: new memory takes longer than the arithmetic.
    weight = ((y**2)[:, :, :, None] + (x**2)[:, :, None]).reciprocal_()
    weight.mul_(weight.sum(1, keepdim=True).rsqrt_())
    torch.view_as_real(maps).mul_(weight[..., None])
    return maps
