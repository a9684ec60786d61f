"""Segmentation: features and a light decoder along the inverse wavelet transform (WaveFormer, MICCAI 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.downstream.features import FeaturePyramid
from voxelwave.ops.wavelets import inverse_haar


class SegmentationModel(nn.Module):
    """Logits of every voxel.

    The features of all levels are joined on the token grid. Each step of the decoder then predicts the eight Haar bands
    of a grid twice as fine, adds those of the image itself, and inverts the transform: what is fine in the image need
    not pass through the tokens. The factor of a patch size that is not a power of two is undone first.

    Args:
        features: the backbone; one image stem for each of its channel counts.
        num_classes: with the background.
        width: channels at full resolution, twice as many at each coarser one.

    Raises ValueError for fewer than two classes, or no width.
    """

    def __init__(self, features: FeaturePyramid, *, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.num_classes = num_classes
        if num_classes < 2 or width < 1:
            raise ValueError(f"num_classes is at least 2 and width at least 1, got {num_classes} and {width}")
        self.features = features
        patch_size = features.strides[-1]
        steps = (patch_size & -patch_size).bit_length() - 1
        odd = patch_size >> steps
        top = width << steps
        self.join = nn.Conv3d(sum(features.channels), top, kernel_size=1)
        self.spread = nn.ConvTranspose3d(top, top, kernel_size=odd, stride=odd) if odd > 1 else nn.Identity()
        self.refine = _Refine(top)
        self.steps = nn.ModuleList(_InverseStep(top >> step, features.in_channels) for step in range(steps))
        self.classify = nn.Conv3d(width, num_classes, kernel_size=1)

    def forward(
        self, volume: Float[Tensor, "batch channel depth height width"]
    ) -> Float[Tensor, "batch class depth height width"]:
        """Return logits; raises ValueError for another channel count or a side that the patch does not divide."""
        # 1. One grid of tokens from the features of all depths.
        x = self.refine(self.spread(_pointwise(self.join, torch.cat(self.features(volume), dim=1))))
        # 2. The image itself at every scale, fine to coarse.
        octets, image = [], volume
        for _ in self.steps:
            octets.append(_octets(image))
            image = octets[-1].mean(dim=4).movedim(-1, 1)
        # 3. Back up to full resolution.
        for step in self.steps:
            x = step(x, octets.pop())
        return _pointwise(self.classify, x)


class _Refine(nn.Module):
    """x + conv(GELU(norm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(width, affine=True)
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = x + self.conv(F.gelu(self.norm(x)))
        return refined


class _InverseStep(nn.Module):
    """Twice as fine, half as wide: predicted bands and those of the image, through the inverse transform.

    All of it is linear, and one product: transforming weights takes less than transforming bands, and the bands of the
    image (over √8, so that the low-pass one is a mean) are transformed back into its voxels.
    """

    def __init__(self, width: int, in_channels: tuple[int, ...]) -> None:
        super().__init__()
        self.width = width // 2
        self.predict = nn.Linear(width, 8 * self.width)
        self.image = nn.ModuleDict({str(count): nn.Linear(count, self.width, bias=False) for count in in_channels})
        self.refine = _Refine(self.width)

    def forward(self, x: Tensor, octets: Float[Tensor, "batch d h w 8 channel"]) -> Tensor:
        of_image = self.image[str(octets.shape[-1])].get_parameter("weight") / 8**0.5
        each = torch.eye(8, dtype=of_image.dtype, device=of_image.device)
        weight = torch.cat([_inverse(self.predict.weight), torch.kron(each, of_image)], dim=1)
        both = torch.cat([x.movedim(1, -1), octets.flatten(4)], dim=-1)
        joined = F.linear(both, weight, _inverse(self.predict.bias)).unflatten(-1, (8, self.width))
        refined: Tensor = self.refine(_from_octets(joined))
        return refined


def _inverse(bands: Tensor) -> Tensor:
    """Transform the weights of eight bands, that lie behind one another, into those of eight voxels."""
    return inverse_haar(bands.reshape(8, -1)).view_as(bands)


def _pointwise(
    conv: nn.Conv3d, grid: Float[Tensor, "batch channel depth height width"]
) -> Float[Tensor, "batch out depth height width"]:
    """Apply a convolution with kernels of one voxel as the product that it is: on a CPU torch has a slow way for it."""
    assert conv.bias is not None
    weight, bias = conv.weight.flatten(1).expand(grid.shape[0], -1, -1), conv.bias[:, None]
    # Of a matrix and a batch torch would lay the batch out anew, which takes ten times as long as the product.
    applied: Tensor = torch.baddbmm(bias, weight, grid.flatten(2)).unflatten(2, grid.shape[2:])
    return applied


def _octets(
    grid: Float[Tensor, "batch channel depth height width"],
) -> Float[Tensor, "batch d h w 8 channel"]:
    """Gather 2×2×2 neighbours, last axis fastest."""
    cut = grid.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    octets: Tensor = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4, 6)
    return octets


def _from_octets(
    octets: Float[Tensor, "batch d h w 8 channel"],
) -> Float[Tensor, "batch channel depth height width"]:
    """Invert `_octets`."""
    cut = octets.unflatten(4, (2, 2, 2))
    grid: Tensor = cut.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3).contiguous()
    return grid
