"""Quarter turns: rotations that move voxels without interpolating them."""

from __future__ import annotations

from itertools import combinations

import torch
from jaxtyping import Int
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.augmentations import SpatialAugmentation, Volumes
from voxelwave.registry import AUGMENTATIONS


def rotate90(volume: Volumes, turns: Int[Tensor, " batch"], planes: Int[Tensor, "batch 2"]) -> Volumes:
    """Turn each sample by `turns` times 90 degrees from the first to the second spatial axis (0 to 2) of its plane.

    Raises ValueError for an odd number of turns in a plane of unequal sides, which would change the shape.
    """
    turned = []
    for sample, number, plane in zip(volume, turns.tolist(), planes.tolist(), strict=True):
        sides = [sample.shape[axis + 1] for axis in plane]
        if number % 2 and sides[0] != sides[1]:
            raise ValueError(
                f"{number} quarter turns of a plane of {sides[0]} by {sides[1]} voxels change the shape of a batch: "
                "turn twice, or a plane of equal sides"
            )
        turned.append(sample.rot90(number, [axis + 1 for axis in plane]))
    return torch.stack(turned).contiguous()


@AUGMENTATIONS.register("rotate90")
class RandomRotate90(SpatialAugmentation):
    """With `probability` turns a sample by 90, 180 or 270 degrees in one of the planes whose sides agree.

    Raises ValueError for a probability outside [0, 1].
    """

    def __init__(self, *, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of a rotation lies between 0 (never) and 1 (always), got {probability}")
        self.probability = probability

    def draw(
        self, batch_size: int, grid: Grid, generator: torch.Generator
    ) -> tuple[Int[Tensor, " batch"], Int[Tensor, "batch 2"]]:
        """Return the number of quarter turns and the plane of every sample; no turns where no sides agree."""
        planes = [(first, second) for first, second in combinations(range(3), 2) if grid[first] == grid[second]]
        turned = (torch.rand(batch_size, generator=generator) < self.probability) & bool(planes)
        turns = torch.randint(1, 4, (batch_size,), generator=generator) * turned
        choice = torch.randint(max(1, len(planes)), (batch_size,), generator=generator)
        return turns, torch.tensor(planes or [(0, 1)])[choice]

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume`, turned."""
        depth, height, width = volume.shape[2:]
        return rotate90(volume, *self.draw(len(volume), (depth, height, width), generator))
