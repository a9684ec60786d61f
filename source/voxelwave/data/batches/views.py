"""Views: the part of a volume that is trained on, and the size at which it is shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from voxelwave.contracts import Grid
from voxelwave.data.batches.cuboids import Cuboids

Volume = Float[Tensor, "channel depth height width"]
View = Float[Tensor, "channel view_depth view_height view_width"]


def resize(volume: Volume, size: Grid) -> View:
    """Resample to `size`: area averages along axes that shrink, trilinear along those that grow."""
    depth, height, width = (min(new, old) for new, old in zip(size, volume.shape[1:], strict=True))
    smaller = (depth, height, width)
    if smaller != tuple(volume.shape[1:]):
        volume = F.adaptive_avg_pool3d(volume, smaller)
    if tuple(size) != smaller:
        volume = F.interpolate(volume[None], size, mode="trilinear", align_corners=False)[0]
    return volume


def pad(volume: Volume, size: Grid) -> View:
    """Surround by zeros (air) to at least `size`, the volume in the middle."""
    missing = [max(0, new - old) for new, old in zip(size, volume.shape[1:], strict=True)]
    if not any(missing):
        return volume
    return F.pad(volume, [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)])


def fit(volume: Volume, size: Grid) -> View:
    """Resize to the largest volume of the same proportions within `size`, and pad to `size`."""
    scale = min(new / old for new, old in zip(size, volume.shape[1:], strict=True))
    depth, height, width = (max(1, round(old * scale)) for old in volume.shape[1:])
    return pad(resize(volume, (depth, height, width)), size)


class RandomView:
    """Shows a part of a volume as `crop_size` voxels.

    Args:
        crop_size: of the result, in voxels.
        view_share: None cuts `crop_size` voxels out at native resolution; (low, high) cuts out a cuboid whose
            sides are such a share of the volume's and fits it into `crop_size` without changing its
            proportions. (1, 1) shows every volume whole.
        foreground_share: of the cuts at native resolution are centred on a voxel that is not air, as far as
            the edges allow; the others lie anywhere.

    Raises ValueError for a share outside these ranges.
    """

    def __init__(
        self, *, crop_size: Grid, view_share: tuple[float, float] | None = None, foreground_share: float = 1.0
    ) -> None:
        if view_share is not None and not 0 < view_share[0] <= view_share[1] <= 1:
            raise ValueError(f"view_share is (low, high) with 0 < low <= high <= 1, got {view_share}")
        if not 0 <= foreground_share <= 1:
            raise ValueError(f"foreground_share lies in 0 to 1, got {foreground_share}")
        self.crop_size, self.view_share, self.foreground_share = crop_size, view_share, foreground_share

    def draw(self, volume: Cuboids, generator: torch.Generator) -> tuple[Grid, Grid]:
        """Return the start and the size of the part."""
        sides = volume.grid
        if self.view_share is not None:
            low, high = self.view_share
            share = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
            size = [max(1, round(side * share)) for side in sides]
        else:
            size = [min(crop, side) for crop, side in zip(self.crop_size, sides, strict=True)]
            if float(torch.rand((), generator=generator, dtype=torch.float64)) < self.foreground_share:
                start = [
                    min(max(0, middle - part // 2), side - part)
                    for middle, part, side in zip(volume.foreground_voxel(generator), size, sides, strict=True)
                ]
                return _grid(start), _grid(size)
        start = [
            int(torch.randint(side - part + 1, (), generator=generator)) for side, part in zip(sides, size, strict=True)
        ]
        return _grid(start), _grid(size)

    def __call__(self, volume: Cuboids, generator: torch.Generator) -> View:
        """Return the part."""
        part = volume.cut(*self.draw(volume, generator))
        return (pad(part, self.crop_size) if self.view_share is None else fit(part, self.crop_size)).contiguous()


def _grid(sides: Sequence[int]) -> Grid:
    depth, height, width = sides
    return depth, height, width
