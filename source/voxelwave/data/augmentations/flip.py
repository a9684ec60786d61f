"""Mirror images along any axis: each is a head that could be, and no voxel is interpolated."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from voxelwave.data.augmentations import SpatialAugmentation, Volumes
from voxelwave.registry import AUGMENTATIONS


def flip(volume: Volumes, flipped: Bool[Tensor, "batch 3"]) -> Volumes:
    """Mirror each sample along its `flipped` spatial axes."""
    samples = zip(volume, flipped.tolist(), strict=True)
    mirrored = [sample.flip([axis for axis in (1, 2, 3) if axes[axis - 1]]) for sample, axes in samples]
    return torch.stack(mirrored).contiguous()


@AUGMENTATIONS.register("flip")
class RandomFlip(SpatialAugmentation):
    """Mirrors each of `axes` (0 left-right, 1 back-front, 2 bottom-top) of each sample with `probability`.

    Raises ValueError for a probability outside [0, 1], or another axis.
    """

    def __init__(self, *, probability: float = 0.5, axes: tuple[int, ...] = (0, 1, 2)) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of a flip lies between 0 (never) and 1 (always), got {probability}")
        if not set(axes) <= {0, 1, 2}:
            raise ValueError(f"the axes of a flip are among 0, 1 and 2, got {list(axes)}")
        self.probability, self.axes = probability, axes

    def draw(self, batch_size: int, generator: torch.Generator) -> Bool[Tensor, "batch 3"]:
        """Return which axes of which samples to mirror."""
        may = torch.tensor([axis in self.axes for axis in range(3)])
        return (torch.rand(batch_size, 3, generator=generator) < self.probability) & may

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume`, mirrored."""
        return flip(volume, self.draw(len(volume), generator))
