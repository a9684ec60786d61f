"""Labelled volumes: crops of an image and of its labels at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from voxelwave.data.batches.cuboids import Cuboid, InMemory
from voxelwave.data.batches.views import RandomView, pad
from voxelwave.data.reading.volume import VolumeInfo


class LabelledVolume(InMemory):
    """A scaled volume with the class of each voxel, in memory: half precision and one byte a voxel.

    The voxels of all classes are its foreground; of the classes that are there each is drawn equally often.

    Args:
        source: the header of the file that the image was read from, where predictions are to be written like it.
    """

    def __init__(
        self,
        volume: Float[Tensor, "channel depth height width"],
        labels: UInt8[Tensor, "depth height width"],
        *,
        source: VolumeInfo | None = None,
    ) -> None:
        super().__init__(volume.half())
        self.source = source
        self.labels = labels
        most = int(labels.max()) + 1
        # How many voxels of each class lie up to each plane: the n-th is then found in one of them.
        self._up_to = torch.stack([torch.bincount(plane.flatten(), minlength=most) for plane in labels]).cumsum(0)
        self.present: list[int] = (1 + self._up_to[-1, 1:].nonzero()[:, 0]).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes as arrays: of tensors torch would use /dev/shm, of which containers have little.
        return _labelled, (self._volume.numpy(), self.labels.numpy(), self.source)

    @property
    def volume(self) -> Float[Tensor, "channel depth height width"]:
        """The image, in half precision."""
        return self._volume

    @property
    def nbytes(self) -> int:
        """Of image and labels."""
        return self._volume.nbytes + self.labels.nbytes

    def foreground_voxel(self, generator: torch.Generator) -> Sequence[int]:
        """Return a random voxel of a random class, any voxel where there is no class."""
        if not self.present:
            return [int(torch.randint(side, (), generator=generator)) for side in self.grid]
        label = self.present[int(torch.randint(len(self.present), (), generator=generator))]
        up_to = self._up_to[:, label].contiguous()
        number = int(torch.randint(int(up_to[-1]), (), generator=generator))
        plane = int(torch.searchsorted(up_to, number, right=True))
        before = int(up_to[plane - 1]) if plane else 0
        return [plane, *(self.labels[plane] == label).nonzero()[number - before].tolist()]

    def crop(
        self, view: RandomView, generator: torch.Generator
    ) -> tuple[Cuboid, UInt8[Tensor, "crop_depth crop_height crop_width"]]:
        """Return the part of image and labels that `view` draws, both padded with 0 to its size."""
        start, size = view.draw(self, generator)
        (d, h, w), (depth, height, width) = start, size
        labels = self.labels[None, d : d + depth, h : h + height, w : w + width].half()
        return pad(self.cut(start, size), view.crop_size), pad(labels, view.crop_size)[0].byte()


def _labelled(volume: ndarray, labels: ndarray, source: VolumeInfo | None) -> LabelledVolume:
    return LabelledVolume(torch.from_numpy(volume), torch.from_numpy(labels), source=source)
