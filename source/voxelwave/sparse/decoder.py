"""The light decoder: from scales with holes to one feature for every token (SparK, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.sparse.volume import SparseVolume


def _channel_norm(norm: nn.Module, grid: Float[Tensor, "batch channel depth height width"]) -> Tensor:
    normed: Tensor = norm(grid.movedim(1, -1))
    return normed.movedim(-1, 1)


class _Fuse(nn.Module):
    """Add a skip to the grid from the coarser scale, then refine: x + conv(GELU(norm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(width, width, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        depth, height, width = skip.shape[-3:]
        fused = skip + self.up(coarse)[..., :depth, :height, :width]
        refined: Tensor = fused + self.conv(F.gelu(_channel_norm(self.norm, fused)))
        return refined


class LightDecoder(nn.Module):
    """Fill every scale's unseen sites with that scale's mask embedding, project, and add up from coarse to fine."""

    def __init__(self, widths: Sequence[int], *, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.mask_embeddings = nn.ParameterList(nn.init.trunc_normal_(torch.empty(w), std=0.02) for w in widths)
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in widths)
        self.project = nn.ModuleList(nn.Conv3d(w, width, kernel_size=3, padding=1) for w in widths)
        self.fuse = nn.ModuleList(_Fuse(width) for _ in widths[1:])
        self.norm = nn.LayerNorm(width)

    def forward(self, scales: Sequence[SparseVolume]) -> Float[Tensor, "batch channel depth height width"]:
        """Return a dense grid of the finest scale's size, normalised over channels."""
        # 1. Densify each scale with its own embedding, and project it to the decoder's width.
        skips = [
            project(scale.map_sites(norm).densify(embedding))
            for scale, norm, embedding, project in zip(
                scales, self.norms, self.mask_embeddings, self.project, strict=True
            )
        ]
        # 2. From coarse to fine: upsample, add the skip, refine.
        grid = skips.pop()
        for fuse in reversed(self.fuse):
            grid = fuse(grid, skips.pop())
        return _channel_norm(self.norm, grid)
