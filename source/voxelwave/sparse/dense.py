"""Sparse convolutions computed densely: convolve the zero-filled grid, and keep the active sites of the result.

That is what a submanifold sparse convolution computes (SparK, ICLR 2023, section 3.2), so this is both the portable
backend and the reference of the others.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from voxelwave.sparse.volume import SparseVolume


class DenseBackend:
    """Convolutions on `SparseVolume` by dense ones; weights in the layout of conv3d, `[out, in, k, k, k]`."""

    name = "dense"

    def convolve(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 3 3 3"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Submanifold convolution of stride 1: the active sites stay as they are."""
        features = F.conv3d(volume.densify(), weight, bias, padding=1)
        return SparseVolume.on(features, volume.sites)

    def downsample(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 2 2 2"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Convolution of kernel 2, stride 2: a coarse site is active where one of its eight sites was.

        Odd sides are padded by one inactive site at their end.
        """
        odd = [length % 2 for length in reversed(volume.sites.grid)]
        grid = F.pad(volume.densify(), [amount for length in odd for amount in (0, length)])
        features = F.conv3d(grid, weight, bias, stride=2)
        return SparseVolume.on(features, volume.sites.coarse)
