"""The hierarchical convolutional encoder over visible tokens (SparK, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.errors import InputError
from voxelwave.sparse.dense import DenseBackend
from voxelwave.sparse.volume import SparseVolume


@runtime_checkable
class SparseBackend(Protocol):
    """Computes convolutions on active sites; parameters stay with the modules, so that backends share checkpoints."""

    def convolve(self, volume: SparseVolume, weight: Float[Tensor, "..."], bias: Float[Tensor, "..."]) -> SparseVolume:
        """Submanifold convolution, stride 1."""
        ...

    def downsample(
        self, volume: SparseVolume, weight: Float[Tensor, "..."], bias: Float[Tensor, "..."]
    ) -> SparseVolume:
        """Convolution of kernel 2, stride 2, over max-pooled active sites."""
        ...


def choose_backend(name: str) -> SparseBackend:
    """Return the backend called `name`; `auto` takes the fastest one that is installed."""
    if name in ("auto", "dense"):
        return DenseBackend()
    raise InputError(f"unknown sparse backend '{name}': use auto or dense")


class SparseConv3d(nn.Conv3d):
    """A conv3d whose parameters a sparse backend applies: stride 1 keeps the active sites, stride 2 halves the grid."""

    def __init__(self, in_channels: int, out_channels: int, backend: SparseBackend, *, kernel_size: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self._backend = backend
        assert self.bias is not None
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, volume: SparseVolume) -> SparseVolume:  # type: ignore[override]
        """Convolve the active sites."""
        assert self.bias is not None
        apply = self._backend.downsample if self.kernel_size[0] == 2 else self._backend.convolve
        return apply(volume, self.weight, self.bias)


class SparseResidual(nn.Module):
    """x + conv(GELU(norm(x))) on active sites; the norm is over the channels of each site by itself.

    Statistics over channels need neither the batch nor the other modality, and hidden sites cannot enter them.
    """

    def __init__(self, channels: int, backend: SparseBackend) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = SparseConv3d(channels, channels, backend)

    def forward(self, volume: SparseVolume) -> SparseVolume:
        """Refine every active site from its active neighbours."""
        update: SparseVolume = self.conv(volume.map_sites(lambda x: F.gelu(self.norm(x))))
        return volume + update


class SparseEncoder(nn.Module):
    """Encode visible tokens at `len(widths)` scales, each half as fine as the one before."""

    def __init__(self, in_channels: int, *, widths: Sequence[int] = (128, 192, 256), backend: str = "auto") -> None:
        super().__init__()
        engine = choose_backend(backend)
        self.project = nn.Linear(in_channels, widths[0])
        self.refine = nn.ModuleList(SparseResidual(width, engine) for width in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])
        self.down = nn.ModuleList(
            SparseConv3d(fine, coarse, engine, kernel_size=2) for fine, coarse in pairwise(widths)
        )

    def forward(self, volume: SparseVolume) -> list[SparseVolume]:
        """Return the scales from fine to coarse."""
        scales = [self.refine[0](volume.map_sites(self.project))]
        for norm, down, refine in zip(self.norms, self.down, self.refine[1:], strict=True):
            scales.append(refine(down(scales[-1].map_sites(norm))))
        return scales
