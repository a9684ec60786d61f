"""ResidualCNN: a plain residual network whose hidden patches are cleared at the input, as a baseline."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voxelwave.backbones.inputs import check_input
from voxelwave.ops.patches import patchify, unpatchify
from voxelwave.registry import BACKBONES


@BACKBONES.register("residual_cnn")
class ResidualCNN(nn.Module):
    """Residual blocks from the resolution of the voxels down to that of the tokens, where `depth` of them follow.

    Hidden voxels become 0 before anything is computed, so that a visible feature knows of them only that they are
    missing. A first convolution for each channel count and `fine_depth` blocks at every finer resolution make the
    patch embedding, which is depth 0; each strided convolution between resolutions halves the grid and doubles the
    channels, up to `embed_dim`.
    Source: Isensee et al., nnU-Net Revisited, MICCAI 2024 (residual encoder); Wald et al., Revisiting MAE Pre-Training
    for 3D Medical Image Segmentation, CVPR 2025 (hidden patches as zeros of the input).
    Raises ValueError for a `patch_size` that is no power of two, an `embed_dim` that it does not divide, or a size
    that is too small.
    """

    def __init__(
        self,
        in_channels: Sequence[int] = (1, 3),
        *,
        patch_size: int = 8,
        embed_dim: int = 64,
        depth: int = 3,
        fine_depth: int = 1,
    ) -> None:
        super().__init__()
        if patch_size < 1 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size is the product of strides of 2, a power of two, got {patch_size}")
        if embed_dim < 1 or embed_dim % patch_size:
            raise ValueError(f"embed_dim is halved up to every voxel: a multiple of {patch_size}, got {embed_dim}")
        if depth < 1 or fine_depth < 0:
            raise ValueError(f"depth must be at least 1 and fine_depth at least 0, got {depth} and {fine_depth}")
        self.in_channels = tuple(in_channels)
        self.patch_size = patch_size
        self.channels = embed_dim
        self.depth = depth
        width = embed_dim // patch_size
        self.stems = nn.ModuleDict(
            {str(channels): nn.Conv3d(channels, width, 3, padding=1, bias=False) for channels in in_channels}
        )
        layers: list[nn.Module] = [InstanceNorm(width), nn.LeakyReLU()]
        for _ in range(patch_size.bit_length() - 1):
            layers += [ResidualBlock(width) for _ in range(fine_depth)]
            layers += [*_convolution(width, 2 * width, stride=2), nn.LeakyReLU()]
            width *= 2
        self.to_tokens = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(ResidualBlock(embed_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)

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
        # 1. Clear hidden voxels, so that not even a NaN of theirs is read.
        if hidden is not None:
            gone = hidden.flatten(1)[:, :, None, None]
            volume = unpatchify(patchify(volume, self.patch_size).masked_fill(gone, 0.0), grid)
        # oneDNN's bf16 conv3d returns garbage for the gradient of its weights on grids with a side of 2, so that these
        # convolutions keep the precision of their weights on the CPU.
        with torch.autocast("cpu", enabled=False):
            # 2. From voxels to tokens.
            tokens = self.to_tokens(self.stems[str(volume.shape[1])](volume))
            # 3. The blocks, keeping what was asked for.
            kept = {0: tokens}
            for number, block in enumerate(self.blocks, start=1):
                tokens = block(tokens)
                kept[number] = tokens
            final = self.norm(tokens.movedim(1, -1)).movedim(-1, 1)
        # 4. At hidden places stands what the convolutions made of their visible neighbours: it is not handed on.
        grids = [final, *(kept[depth] for depth in depths)]
        if hidden is not None:
            grids = [x.masked_fill(hidden.unsqueeze(1), 0.0) for x in grids]
        return grids[0], grids[1:]


class ResidualBlock(nn.Module):
    """act(x + norm(conv(act(norm(conv(x)))))), as in nnU-Net."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(*_convolution(width, width), nn.LeakyReLU(), *_convolution(width, width))

    def forward(
        self, x: Float[Tensor, "batch channel depth height width"]
    ) -> Float[Tensor, "batch channel depth height width"]:
        """Keep grid and channels."""
        return F.leaky_relu(x + self.residual(x))


class InstanceNorm(nn.Module):
    """Normalise every channel of every sample over its grid, with a learned scale and shift.

    torch's own refuses a grid of a single place, which the last tile of a scan may be; here it becomes the shift.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Float[Tensor, "batch channel depth height width"]
    ) -> Float[Tensor, "batch channel depth height width"]:
        """Return the grid with mean 0 and variance 1, scaled and shifted."""
        scale, shift = (vector[:, None, None, None] for vector in (self.weight, self.bias))
        return F.layer_norm(x, x.shape[2:]) * scale + shift


def _convolution(channels: int, width: int, *, stride: int = 1) -> list[nn.Module]:
    """A convolution and its norm, which would take away a bias."""
    return [nn.Conv3d(channels, width, 3, stride=stride, padding=1, bias=False), InstanceNorm(width)]
