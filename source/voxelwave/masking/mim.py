"""Adaptive hierarchical masking in cubic blocks (after MiM, mask in mask)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64
from scipy.ndimage import uniform_filter
from torch import Tensor

from voxelwave.contracts import Grid, MaskLevels
from voxelwave.registry import MASKINGS


@MASKINGS.register("mim")
class MiMMasking:
    """Hide `global_ratio` of the tokens in blocks, and mark `local_ratio` of these hard, the others easy.

    Hard are those around which the most is hidden, as far as the side of a block, at random where it is as much around
    several.

    The block side follows the smallest side of the grid, so that small grids are not hidden whole: 1 up to 2 tokens,
    2 up to 8, else 4. These sides are even wherever they can be: a block then holds whole wavelet octets, and the
    backbone runs on the visible blocks alone. `block_side="described"` takes 3 for grids of 5 to 8 tokens, an integer
    takes that side for every grid. Raises ValueError for ratios outside (0, 1).
    """

    def __init__(
        self,
        *,
        global_ratio: float = 0.6,
        local_ratio: float = 0.8,
        block_side: Literal["even", "described"] | int = "even",
    ) -> None:
        for name, ratio in (("global_ratio", global_ratio), ("local_ratio", local_ratio)):
            if not 0 < ratio < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {ratio}")
        if isinstance(block_side, int) and block_side < 1:
            raise ValueError(f"block_side must be at least 1, got {block_side}")
        self.global_ratio = global_ratio
        self.local_ratio = local_ratio
        self.block_side = block_side

    def side_for(self, grid: Grid) -> int:
        """Return the block side, in tokens, for a grid."""
        if isinstance(self.block_side, int):
            return self.block_side
        smallest = min(grid)
        if smallest <= 2:
            return 1
        if smallest <= 4:
            return 2
        if smallest <= 8:
            return 3 if self.block_side == "described" else 2
        return 4

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> MaskLevels:
        """Draw one mask for each sample on the CPU; every sample of a grid has the same number of tokens at each level.

        Shares are exact to half a block where blocks tile the grid, else to half an octet on even grids, and to half
        a token on odd ones.
        Raises ValueError for a grid of fewer than two blocks.
        """
        side = self.side_for(grid)
        blocks = tuple(math.ceil(length / side) for length in grid)
        if math.prod(blocks) < 2:
            raise ValueError(f"token grid {grid} holds one mask block of side {side}: nothing would stay visible")

        # 1. A random order of the blocks, as a rank for each.
        ranks = torch.rand(batch_size, math.prod(blocks), generator=generator).argsort(1).argsort(1)
        # 2. An order of the tokens that keeps blocks together: rank of the block, then place within the block.
        order = self._spread(ranks.view(batch_size, *blocks) * side**3, grid, side) + self._place(grid, side)
        tiled = all(length % side == 0 for length in grid)
        even = all(length % 2 == 0 for length in (side, *grid))
        if not tiled:
            order = order.flatten(1).argsort(1).argsort(1).view(batch_size, *grid)
        # 3. The first tokens of that order are hidden. Whole blocks where they tile the grid, else whole octets where
        #    these do: the backbone then computes the visible ones alone. Never nothing, never everything.
        unit = side**3 if tiled else 8 if even else 1
        num_units = math.prod(grid) // unit
        num_hidden = min(max(round(self.global_ratio * num_units), 1), num_units - 1)
        num_hard = min(round(self.global_ratio * self.local_ratio * num_units), num_hidden)
        hidden = order < num_hidden * unit
        # 4. Those of them around which the most is hidden are hard.
        around = _hidden_around(hidden, side) + 1e-6 * torch.rand(hidden.shape, generator=generator)
        around = around.masked_fill(~hidden, -1)
        hard = around.flatten(1).argsort(1, descending=True).argsort(1).view(hidden.shape) < num_hard * unit
        return MaskLevels(hidden.to(torch.int8) + hard.to(torch.int8))

    @staticmethod
    def _spread(per_block: Tensor, grid: Grid, side: int) -> Tensor:
        """Repeat a value of each block over its tokens."""
        for axis, length in enumerate(grid, start=1):
            per_block = per_block.repeat_interleave(side, axis).narrow(axis, 0, length)
        return per_block

    @staticmethod
    def _place(grid: Grid, side: int) -> Tensor:
        """Number the tokens of each block from 0 to side³ − 1, octet by octet where the side is even."""
        d, h, w = torch.meshgrid(*(torch.arange(length) % side for length in grid), indexing="ij")
        if side % 2:
            return (d * side + h) * side + w
        octet = (d // 2 * (side // 2) + h // 2) * (side // 2) + w // 2
        return octet * 8 + d % 2 * 4 + h % 2 * 2 + w % 2


def _hidden_around(
    hidden: Bool[Tensor, "batch depth height width"], reach: int
) -> Float64[Tensor, "batch depth height width"]:
    """Return the share of hidden tokens in the cube that reaches as far to each side; the grid ends it."""
    sides = (2 * reach + 1,) * 3
    counted = uniform_filter(hidden.double().numpy(), (1, *sides), mode="constant")
    inside = uniform_filter(np.ones(hidden.shape[1:]), sides, mode="constant")
    return torch.from_numpy(counted / inside)
