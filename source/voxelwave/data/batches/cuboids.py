"""Volumes of which parts are cut: one that lies in memory, or one in the store, of which the part alone is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.modalities import SHOWN, Modality
from voxelwave.data.store import StoredVolume

CENTRE_ATTEMPTS = 16

Cuboid = Float[Tensor, "channel part_depth part_height part_width"]


@runtime_checkable
class Cuboids(Protocol):
    """A scaled volume of which parts can be cut; `grid` are its voxels along each axis."""

    grid: Grid

    def cut(self, start: Grid, size: Grid) -> Cuboid:
        """Return the cuboid of `size` that begins at `start`, in [0, 1]."""
        ...

    def foreground_voxel(self, generator: torch.Generator) -> Sequence[int]:
        """Return a voxel that is not air, where there is one."""
        ...


class InMemory:
    """A volume that was read whole."""

    def __init__(self, volume: Float[Tensor, "channel depth height width"]) -> None:
        depth, height, width = volume.shape[1:]
        self._volume, self.grid = volume, (depth, height, width)

    def cut(self, start: Grid, size: Grid) -> Cuboid:
        """Return the cuboid of `size` that begins at `start`."""
        (d, h, w), (depth, height, width) = start, size
        return self._volume[:, d : d + depth, h : h + height, w : w + width].float()

    def foreground_voxel(self, generator: torch.Generator) -> Sequence[int]:
        """Return the first of 16 random voxels that is not air; the first of all where all are air."""
        # Trying voxels until one is not air costs nothing beside a pass over the volume to list them all.
        sides = torch.tensor(self.grid)
        places = (torch.rand(CENTRE_ATTEMPTS, 3, generator=generator, dtype=torch.float64) * sides).long()
        shown = self._volume[:, places[:, 0], places[:, 1], places[:, 2]].amax(0) > SHOWN
        place: list[int] = places[int(shown.int().argmax())].tolist()
        return place


class InStore:
    """A stored volume; its modality scales what is read."""

    def __init__(self, stored: StoredVolume, modality: Modality) -> None:
        self._stored, self._modality, self.grid = stored, modality, stored.grid

    def cut(self, start: Grid, size: Grid) -> Cuboid:
        """Return the cuboid of `size` that begins at `start`; raises DamagedVolume where it cannot be read."""
        return torch.from_numpy(self._modality.scale(self._stored.crop(start, size), self._stored.info.bounds))

    def foreground_voxel(self, generator: torch.Generator) -> Sequence[int]:
        """Return one of the voxels that were listed as foreground when the volume was stored."""
        places = self._stored.foreground
        if not len(places):
            return [side // 2 for side in self.grid]
        place: list[int] = places[int(torch.randint(len(places), (), generator=generator))].tolist()
        return place
