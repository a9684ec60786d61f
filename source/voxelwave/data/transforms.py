"""Augmentations: each random one draws its parameters from a generator for its deterministic twin."""

from __future__ import annotations

from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from voxelwave.contracts import Grid

Volume = Float[Tensor, "channel depth height width"]
View = Float[Tensor, "channel view_depth view_height view_width"]

AIR = 0.1
CENTRE_ATTEMPTS = 16


def flip(volume: Volume, axes: tuple[int, ...]) -> Volume:
    """Mirror the spatial `axes` (0 to 2)."""
    return volume.flip([axis + 1 for axis in axes]) if axes else volume


def rotate90(volume: Volume, turns: int, plane: tuple[int, int]) -> View:
    """Turn by `turns` times 90 degrees in the plane of two spatial axes (0 to 2)."""
    return volume.rot90(turns, [plane[0] + 1, plane[1] + 1])


def add_noise(volume: Volume, noise: Volume) -> Volume:
    """Add `noise`; the result may leave [0, 1], for clipping would shift the mean of the air."""
    return volume + noise


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


def crop(volume: Volume, start: Grid, size: Grid) -> View:
    """Cut out the cuboid of `size` that begins at `start`."""
    (d, h, w), (depth, height, width) = start, size
    return volume[:, d : d + depth, h : h + height, w : w + width]


def fit(volume: Volume, size: Grid) -> View:
    """Resize to the largest volume of the same proportions within `size`, and pad to `size`."""
    scale = min(new / old for new, old in zip(size, volume.shape[1:], strict=True))
    depth, height, width = (max(1, round(old * scale)) for old in volume.shape[1:])
    return pad(resize(volume, (depth, height, width)), size)


class RandomFlip:
    """Mirrors each axis with `probability`."""

    def __init__(self, *, probability: float = 0.5) -> None:
        self.probability = probability

    def draw(self, generator: torch.Generator) -> tuple[int, ...]:
        """Return the axes to mirror."""
        return tuple(torch.nonzero(torch.rand(3, generator=generator) < self.probability).flatten().tolist())

    def __call__(self, volume: Volume, generator: torch.Generator) -> Volume:
        """Return `volume`, mirrored."""
        return flip(volume, self.draw(generator))


class RandomRotate90:
    """With `probability` turns by 90, 180 or 270 degrees in one of the planes whose sides agree."""

    def __init__(self, *, probability: float = 0.5) -> None:
        self.probability = probability

    def draw(self, shape: Grid, generator: torch.Generator) -> tuple[int, tuple[int, int]]:
        """Return the number of quarter turns and the plane."""
        planes = [(first, second) for first, second in combinations(range(3), 2) if shape[first] == shape[second]]
        turn = float(torch.rand((), generator=generator)) < self.probability
        if not (turn and planes):
            return 0, (0, 1)
        turns = int(torch.randint(1, 4, (), generator=generator))
        return turns, planes[int(torch.randint(len(planes), (), generator=generator))]

    def __call__(self, volume: Volume, generator: torch.Generator) -> View:
        """Return `volume`, turned."""
        depth, height, width = volume.shape[1:]
        return rotate90(volume, *self.draw((depth, height, width), generator))


class GaussianNoise:
    """Adds noise of standard deviation `std`, in units of the scaled volume, to every voxel and channel."""

    def __init__(self, *, std: float = 0.01) -> None:
        self.std = std

    def draw(self, volume: Volume, generator: torch.Generator) -> Volume:
        """Return the noise."""
        return torch.randn(volume.shape, generator=generator).mul_(self.std)

    def __call__(self, volume: Volume, generator: torch.Generator) -> Volume:
        """Return `volume` with noise."""
        return add_noise(volume, self.draw(volume, generator)) if self.std else volume


class RandomView:
    """Shows a part of a volume as `crop_size` voxels.

    Args:
        crop_size: of the result, in voxels.
        view_share: None cuts `crop_size` voxels out at native resolution, preferably around tissue; (low,
            high) cuts out a cuboid whose sides are such a share of the volume's and fits it into `crop_size`
            without changing its proportions. (1, 1) shows every volume whole.
    """

    def __init__(self, *, crop_size: Grid, view_share: tuple[float, float] | None = None) -> None:
        if view_share is not None and not 0 < view_share[0] <= view_share[1] <= 1:
            raise ValueError(f"view_share is (low, high) with 0 < low <= high <= 1, got {view_share}")
        self.crop_size, self.view_share = crop_size, view_share

    def draw(self, volume: Volume, generator: torch.Generator) -> tuple[Grid, Grid]:
        """Return the start and the size of the part; a volume to be cut is at least `crop_size` large."""
        sides = volume.shape[1:]
        if self.view_share is not None:
            low, high = self.view_share
            share = low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
            size = [max(1, round(side * share)) for side in sides]
            start = [
                int(torch.randint(side - part + 1, (), generator=generator))
                for side, part in zip(sides, size, strict=True)
            ]
        else:
            size = list(self.crop_size)
            centre = self._tissue(volume, generator)
            start = [
                min(max(0, middle - part // 2), side - part)
                for middle, part, side in zip(centre, size, sides, strict=True)
            ]
        return (start[0], start[1], start[2]), (size[0], size[1], size[2])

    def _tissue(self, volume: Volume, generator: torch.Generator) -> list[int]:
        # Trying voxels until one is not air costs nothing beside a pass over the volume to list them all.
        sides = torch.tensor(volume.shape[1:])
        places = (torch.rand(CENTRE_ATTEMPTS, 3, generator=generator, dtype=torch.float64) * sides).long()
        shown = volume[:, places[:, 0], places[:, 1], places[:, 2]].amax(0) > AIR
        place: list[int] = places[int(shown.int().argmax())].tolist()
        return place

    def __call__(self, volume: Volume, generator: torch.Generator) -> View:
        """Return the part."""
        if self.view_share is not None:
            return fit(crop(volume, *self.draw(volume, generator)), self.crop_size)
        volume = pad(volume, self.crop_size)
        return crop(volume, *self.draw(volume, generator))


class Augment:
    """A random view of a volume, flipped, rotated and with noise, all drawn from one generator.

    Args:
        crop_size: of the result, in voxels.
        view_share: as in `RandomView`.
        flip_probability: of each axis.
        rotate_probability: of a rotation by a multiple of 90 degrees.
        noise_std: in units of the scaled volume, [0, 1].
    """

    def __init__(
        self,
        *,
        crop_size: Grid,
        view_share: tuple[float, float] | None = None,
        flip_probability: float = 0.5,
        rotate_probability: float = 0.5,
        noise_std: float = 0.01,
    ) -> None:
        self._steps = (
            RandomView(crop_size=crop_size, view_share=view_share),
            RandomFlip(probability=flip_probability),
            RandomRotate90(probability=rotate_probability),
            GaussianNoise(std=noise_std),
        )

    def __call__(
        self, volume: Volume, generator: torch.Generator
    ) -> Float[Tensor, "channel crop_depth crop_height crop_width"]:
        """Return an augmented view of `volume`."""
        for step in self._steps:
            volume = step(volume, generator)
        return volume.contiguous()
