"""WaveFormer3D: one transformer for volumes of any registered channel count, on visible tokens or on all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from voxelwave.backbones.inputs import check_input
from voxelwave.backbones.wavelet_attention import HighBands, WaveletBlock
from voxelwave.contracts import Grid
from voxelwave.ops.patches import nested_order, patchify
from voxelwave.registry import BACKBONES


class _Layout(NamedTuple):
    """Which tokens run through the blocks, in nested order, and where they lie."""

    tokens: Int[Tensor, "batch token"]
    """Raster indices in the padded grid."""
    places: Float[Tensor, "batch octet 3"]
    absent: Bool[Tensor, "batch octet"] | None
    """Octets without a visible token, where the layout holds any."""


@BACKBONES.register("waveformer")
class WaveFormer3D(nn.Module):
    """A wavelet-attention transformer with one patch embedding for each channel count; all else is shared.

    Hidden voxels are never read. Where hidden tokens fill whole wavelet blocks, only the visible ones are computed;
    otherwise hidden tokens of cut octets become a learned token, and octets without a visible token are not attended.
    Both ways give the visible tokens the same features. Sides only have to be divisible by the patch size.
    `wavelet_levels=0` is the plain transformer, whose tokens all attend each other.
    Raises ValueError for a size below 1, or an `embed_dim` that `num_heads` does not divide.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (1, 3),
        *,
        patch_size: int = 8,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        wavelet_levels: int = 1,
        high_bands: HighBands = "attend",
    ) -> None:
        super().__init__()
        if min(patch_size, embed_dim, depth, num_heads) < 1 or mlp_ratio * embed_dim < 1 or wavelet_levels < 0:
            raise ValueError(
                "patch_size, embed_dim, depth, num_heads and mlp_ratio × embed_dim must be at least 1, "
                "wavelet_levels at least 0"
            )
        self.in_channels = tuple(in_channels)
        self.patch_size = patch_size
        self.channels = embed_dim
        self.depth = depth
        self.wavelet_levels = wavelet_levels
        self._octet = 8 if wavelet_levels else 1
        self.stems = nn.ModuleDict(
            {str(channels): nn.Conv3d(channels, embed_dim, patch_size, stride=patch_size) for channels in in_channels}
        )
        self.mask_token = nn.Parameter(torch.zeros(embed_dim))
        self.blocks = nn.ModuleList(
            WaveletBlock(
                embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, levels=wavelet_levels, high_bands=high_bands
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.apply(_initialise)

    def forward(
        self,
        volume: Float[Tensor, "batch channel depth height width"],
        hidden: Bool[Tensor, "batch d h w"] | None = None,
    ) -> Float[Tensor, "batch embed d h w"]:
        """Return the feature grid; hidden tokens (True in `hidden`) are 0.

        Raises ValueError for another channel count, a side that the patch does not divide, a `hidden` of another
        shape, or a sample without a visible token.
        """
        return self.forward_intermediates(volume, hidden)[0]

    def forward_intermediates(
        self,
        volume: Float[Tensor, "batch channel depth height width"],
        hidden: Bool[Tensor, "batch d h w"] | None = None,
        depths: Sequence[int] = (),
    ) -> tuple[Float[Tensor, "batch embed d h w"], list[Float[Tensor, "batch embed d h w"]]]:
        """Return the feature grid and the raw grids after the asked `depths` (0 is the patch embedding)."""
        grid = check_input(volume, hidden, counts=self.stems.keys(), patch_size=self.patch_size)
        # 1. Choose the tokens to compute, and embed only what is visible.
        layout = self._layout(grid, hidden, volume)
        tokens = self._embed(volume, grid, hidden, layout)
        # 2. The transformer, keeping what was asked for.
        kept = {0: tokens} if 0 in depths else {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, layout.places, layout.absent)
            if number in depths:
                kept[number] = tokens
        # 3. Back onto the grid.
        to_grid = [self._to_grid(x, grid, hidden, layout) for x in (self.norm(tokens), *(kept[d] for d in depths))]
        return to_grid[0], to_grid[1:]

    def _padded(self, grid: Grid) -> Grid:
        """The grid rounded up to whole wavelet blocks."""
        side = 2**self.wavelet_levels
        depth, height, width = (-(-length // side) * side for length in grid)
        return depth, height, width

    def _pad_hidden(self, grid: Grid, hidden: Tensor | None, volume: Tensor) -> Tensor:
        """Hidden tokens of the padded grid, flat; what lies outside the volume is hidden too."""
        if hidden is None:
            hidden = volume.new_zeros(volume.shape[0], *grid, dtype=torch.bool)
        pad = [n for full, length in zip(self._padded(grid)[::-1], grid[::-1], strict=True) for n in (0, full - length)]
        return F.pad(hidden, pad, value=True).flatten(1)

    def _layout(self, grid: Grid, hidden: Tensor | None, volume: Tensor) -> _Layout:
        padded = self._padded(grid)
        order = nested_order(padded, self.wavelet_levels).to(volume.device)
        block_size = 8**self.wavelet_levels
        index = order.expand(volume.shape[0], -1)
        absent = None
        if hidden is not None or padded != grid:
            hidden_blocks = self._pad_hidden(grid, hidden, volume)[:, order].unflatten(1, (-1, block_size))
            gone = hidden_blocks.all(2)
            num_visible = (~gone).sum(1)
            whole = (gone == hidden_blocks.any(2)).all() & (num_visible == num_visible[0]).all()
            # Padding alone hides no whole block: without `hidden`, values decide nothing, and the model can be traced.
            if hidden is not None and bool(whole):
                # Whole blocks, equally many in every sample: the transform of the visible ones alone is exact.
                blocks = (~gone).nonzero()[:, 1].view(volume.shape[0], -1)
                index = order.view(-1, block_size)[blocks].flatten(1)
            else:
                absent = hidden_blocks.flatten(1).unflatten(1, (-1, self._octet)).all(2)
        height, width = padded[1:]
        corner = index[:, :: self._octet]
        places = torch.stack([corner // (height * width), corner // width % height, corner % width], 2).float() + 0.5
        return _Layout(index, places, absent)

    def _embed(self, volume: Tensor, grid: Grid, hidden: Tensor | None, layout: _Layout) -> Tensor:
        """Embed the tokens of the layout; hidden ones take the mask token before anything is computed from them."""
        stem = self.stems[str(volume.shape[1])]
        assert isinstance(stem, nn.Conv3d)
        patches = patchify(volume, self.patch_size).flatten(2)
        padded = self._padded(grid)
        if padded != grid:
            pad = [n for full, length in zip(padded[::-1], grid[::-1], strict=True) for n in (0, full - length)]
            patches = F.pad(patches.unflatten(1, grid), (0, 0, *pad)).flatten(1, 3)
        patches = patches.gather(1, layout.tokens[..., None].expand(-1, -1, patches.shape[2]))
        if layout.absent is None:
            return F.linear(patches, stem.weight.flatten(1), stem.bias)
        # Cleared before the product, so that a NaN in a hidden voxel reaches no gradient either.
        unseen = self._pad_hidden(grid, hidden, volume).gather(1, layout.tokens).unsqueeze(2)
        tokens = F.linear(patches.masked_fill(unseen, 0.0), stem.weight.flatten(1), stem.bias)
        return torch.where(unseen, self.mask_token.to(tokens.dtype), tokens)

    def _to_grid(self, tokens: Tensor, grid: Grid, hidden: Tensor | None, layout: _Layout) -> Tensor:
        padded = self._padded(grid)
        flat = tokens.new_zeros(tokens.shape[0], padded[0] * padded[1] * padded[2], self.channels)
        flat = flat.scatter(1, layout.tokens[..., None].expand_as(tokens), tokens)
        full: Tensor = flat.transpose(1, 2).unflatten(2, padded)[..., : grid[0], : grid[1], : grid[2]]
        return full if hidden is None else full.masked_fill(hidden.unsqueeze(1), 0.0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv3d):
        # A patch embedding is a linear map of flattened patches: fans are those of the flat matrix.
        nn.init.xavier_uniform_(module.weight.flatten(1).data.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
