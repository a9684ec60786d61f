"""Masking of single tokens at random, as in MAE."""

from __future__ import annotations

import math

import torch

from voxelwave.contracts import Grid, MaskLevels
from voxelwave.registry import MASKINGS


@MASKINGS.register("random")
class RandomMasking:
    """Hide `ratio` of the tokens, each as likely as any other; all of them count as easy.

    Visible tokens then cut wavelet octets: a backbone with wavelets computes the whole grid, one with
    `wavelet_levels: 0` the visible tokens alone. Source: He et al., Masked autoencoders, CVPR 2022, section 3.
    Raises ValueError for a ratio outside (0, 1).
    """

    def __init__(self, *, ratio: float = 0.75) -> None:
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must lie between 0 and 1, got {ratio}")
        self.ratio = ratio

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> MaskLevels:
        """Draw one mask for each sample on the CPU, with the share of hidden tokens exact to half a token.

        Raises ValueError for a grid of one token.
        """
        num_tokens = math.prod(grid)
        if num_tokens < 2:
            raise ValueError(f"token grid {grid} holds one token: nothing would stay visible")
        num_hidden = min(max(round(self.ratio * num_tokens), 1), num_tokens - 1)
        ranks = torch.rand(batch_size, num_tokens, generator=generator).argsort(1).argsort(1)
        return MaskLevels((ranks < num_hidden).to(torch.int8).view(batch_size, *grid))
