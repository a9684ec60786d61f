"""Sparse convolutions computed densely: convolve the zero-filled grid, then clear every inactive site again.

That is what a submanifold sparse convolution computes (SparK, ICLR 2023, section 3.2), so this is both the portable
backend and the reference of the others.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from voxelwave.sparse.volume import SparseVolume


class DenseBackend:
    """Convolutions on `SparseVolume` by masked dense ones; weights in the layout of conv3d, `[out, in, k, k, k]`."""

    def convolve(self, volume: SparseVolume, weight: Float[Tensor, "..."], bias: Float[Tensor, "..."]) -> SparseVolume:
        """Submanifold convolution of odd kernel, stride 1: the active sites stay as they are."""
        features = F.conv3d(volume.features, weight, bias, padding=weight.shape[-1] // 2)
        return SparseVolume.at(features, volume.active)

    def downsample(
        self, volume: SparseVolume, weight: Float[Tensor, "..."], bias: Float[Tensor, "..."]
    ) -> SparseVolume:
        """Convolution of kernel 2, stride 2: a coarse site is active where one of its eight sites was.

        Odd sides are padded by one inactive site at their end.
        """
        odd = [length % 2 for length in reversed(volume.features.shape[-3:])]
        pad = [amount for length in odd for amount in (0, length)]
        features = F.conv3d(F.pad(volume.features, pad), weight, bias, stride=2)
        active = F.max_pool3d(F.pad(volume.active.to(features.dtype), pad), 2) > 0
        return SparseVolume.at(features, active)
