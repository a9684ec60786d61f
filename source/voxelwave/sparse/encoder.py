"""The hierarchical convolutional encoder over visible tokens (SparK, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from voxelwave.sparse.backends import SparseBackend, make_backend
from voxelwave.sparse.volume import Sites, SparseVolume


class SparseConv3d(nn.Conv3d):
    """A conv3d whose parameters a sparse backend applies: stride 1 keeps the active sites, stride 2 halves the grid."""

    def __init__(self, in_channels: int, out_channels: int, backend: SparseBackend, *, kernel_size: int = 3) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self.backend = backend
        assert self.bias is not None
        nn.init.trunc_normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)
        # In memory [k, k, k, in, out], which the sparse backends multiply with; seen from outside a weight of conv3d.
        self.weight = nn.Parameter(self.weight.detach().permute(2, 3, 4, 1, 0).contiguous().permute(4, 3, 0, 1, 2))

    # Which sites are neighbours depends on the data; a compiler has nothing to gain in the products that follow.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, volume: SparseVolume) -> SparseVolume:
        """Convolve the active sites."""
        assert self.bias is not None
        apply = self.backend.downsample if self.kernel_size[0] == 2 else self.backend.convolve
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
        engine = make_backend(backend)
        self.in_channels = in_channels
        self.project = nn.Linear(in_channels, widths[0])
        self.refine = nn.ModuleList(SparseResidual(width, engine) for width in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[:-1])
        self.down = nn.ModuleList(
            SparseConv3d(fine, coarse, engine, kernel_size=2) for fine, coarse in pairwise(widths)
        )

    @property
    def backend(self) -> SparseBackend:
        """What computes the convolutions."""
        return self._convolutions()[0].backend

    def use(self, backend: SparseBackend) -> None:
        """Compute with another backend from now on; weights and results stay the same."""
        for convolution in self._convolutions():
            convolution.backend = backend

    def _convolutions(self) -> list[SparseConv3d]:
        return [module for module in self.modules() if isinstance(module, SparseConv3d)]

    def forward(self, volume: SparseVolume) -> list[SparseVolume]:
        """Return the scales from fine to coarse."""
        scales = [self.refine[0](volume.map_sites(self.project))]
        for norm, down, refine in zip(self.norms, self.down, self.refine[1:], strict=True):
            scales.append(refine(down(scales[-1].map_sites(norm))))
        return scales


def active_shares(visible: Bool[Tensor, "batch depth height width"], num_scales: int) -> list[float]:
    """Return the share of places that are active at each scale, from fine to coarse, where tokens are `visible`.

    Where tokens are hidden in blocks, it is the same at all scales that are not coarser than the blocks. A place of a
    coarser one covers several blocks and is hidden with all of them together, which is rare.
    """
    scales = [Sites(visible)]
    while len(scales) < num_scales:
        scales.append(scales[-1].coarse)
    return [float(sites.active.float().mean()) for sites in scales]
