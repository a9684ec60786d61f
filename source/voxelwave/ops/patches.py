"""Volumes as rows of patches, and the orders in which tokens of a grid are laid out."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Grid


def token_grid(shape: tuple[int, ...], patch_size: int) -> Grid:
    """Return the grid of patches of a volume `[..., D, H, W]`; raises ValueError where the patch does not divide it."""
    depth, height, width = shape[-3:]
    if any(side % patch_size or not side for side in (depth, height, width)):
        raise ValueError(
            f"volume of {depth}×{height}×{width} voxels is not divisible by patch size {patch_size}: "
            f"pad or crop every side to a multiple of {patch_size}"
        )
    return depth // patch_size, height // patch_size, width // patch_size


def patchify(
    volume: Float[Tensor, "batch channel depth height width"], patch_size: int
) -> Float[Tensor, "batch token channel voxel"]:
    """Cut a volume into cubes of `patch_size`³ voxels, in raster order of the token grid."""
    grid = token_grid(volume.shape[-3:], patch_size)
    cut = volume.unflatten(4, (grid[2], patch_size))
    cut = cut.unflatten(3, (grid[1], patch_size)).unflatten(2, (grid[0], patch_size))
    # b c d p h p w p -> b (d h w) c (p p p)
    patches: Tensor = cut.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(5).flatten(1, 3)
    return patches


def unpatchify(
    patches: Float[Tensor, "batch token channel voxel"], grid: Grid
) -> Float[Tensor, "batch channel depth height width"]:
    """Invert `patchify`."""
    side = round(patches.shape[-1] ** (1 / 3))
    cut = patches.unflatten(3, (side, side, side)).unflatten(1, grid)
    volume: Tensor = cut.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(2, 3)
    return volume


def nested_order(grid: Grid, levels: int) -> Int[Tensor, "token"]:
    """Return raster indices of a grid so that each run of 8ˡ of them is a cube of side 2ˡ, for every l ≤ `levels`.

    Raises ValueError where 2^levels does not divide every side.
    """
    return torch.from_numpy(_nested_order(grid, levels))


# Arrays are kept, not tensors: those made while a model is traced for an export hold no values.
@lru_cache(maxsize=64)
def _nested_order(grid: Grid, levels: int) -> Int64[ndarray, "token"]:
    side = 2**levels
    if any(length % side for length in grid):
        raise ValueError(f"token grid {grid} is not divisible by {side}")
    split = [side for length in grid for side in (length // 2**levels, *([2] * levels))]
    index = np.arange(grid[0] * grid[1] * grid[2]).reshape(split)
    # Axes are (D, d1…dl, H, h1…hl, W, w1…wl): blocks first, then the halvings from coarse to fine.
    span = levels + 1
    halvings = [axis * span + level for level in range(1, span) for axis in range(3)]
    return index.transpose(0, span, 2 * span, *halvings).reshape(-1)
