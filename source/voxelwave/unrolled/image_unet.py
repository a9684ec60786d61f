"""A U-Net on images alone, which knows nothing of coils or samples: what every unrolled network has to beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voxelwave.contracts import NumLines
from voxelwave.registry import RECONSTRUCTIONS
from voxelwave.unrolled.normalising import normalised
from voxelwave.unrolled.zero_filled import Volumes, zero_filled_magnitude


def convolutions(in_channels: int, channels: int) -> nn.Sequential:
    """Return two 3×3 convolutions, each normalised over the area and cut off below 0."""
    layers: list[nn.Module] = []
    for width in (in_channels, channels):
        layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.InstanceNorm2d(channels), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)


@RECONSTRUCTIONS.register("unet")
class ImageUnet(nn.Module):
    """Maps the zero-filled magnitudes of adjacent slices to the image of the centre slice; a `Reconstruction`.

    Args:
        num_slices: adjacent slices, which are the channels of the input.
        channels: of the finest level; each coarser one has twice as many.
        depth: number of halvings.

    `coils_at_once` bounds the memory by that many coils, None by all: it may be set at any time.

    Raises ValueError for numbers out of range.
    Source: Ronneberger et al., U-Net, 2015; Zbontar et al., fastMRI, 2018, section 6.2, for blocks and sizes.
    """

    def __init__(self, *, num_slices: int = 3, channels: int = 32, depth: int = 4) -> None:
        super().__init__()
        if min(channels, depth, num_slices) < 1 or num_slices % 2 == 0:
            raise ValueError(
                f"channels and depth must be at least 1 and num_slices odd, got {channels}, {depth} and {num_slices}"
            )
        self.num_slices, self.multiple = num_slices, 1 << depth
        self.coils_at_once: int | None = None
        widths = [channels << level for level in range(depth + 1)]
        self.downs = nn.ModuleList(map(convolutions, [num_slices, *widths[:-1]], widths))
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(width, width // 2, 2, stride=2, bias=False) for width in widths[:0:-1]
        )
        self.fuses = nn.ModuleList(convolutions(width, width // 2) for width in widths[:0:-1])
        self.last = nn.Conv2d(channels, 1, 1)

    def forward(
        self, kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
    ) -> Float[Tensor, "batch height width"]:
        """Return the magnitude of the centre slice; raises ValueError for another number of slices."""
        if kspace.shape[1] != self.num_slices:
            raise ValueError(f"this network sees {self.num_slices} slices together, got {kspace.shape[1]}")
        magnitude = zero_filled_magnitude(kspace, sampled, coils_at_once=self.coils_at_once)
        image, undo = normalised(magnitude, multiple=self.multiple)
        return undo(self._network(image))[:, 0]

    def _network(self, features: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for down in self.downs:
            features = down(F.avg_pool2d(features, 2) if skips else features)
            skips.append(features)
        skips.pop()
        for up, fuse in zip(self.ups, self.fuses, strict=True):
            features = fuse(torch.cat([up(features), skips.pop()], 1))
        output: Tensor = self.last(features)
        return output
