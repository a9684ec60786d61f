"""The batch of every step: each epoch has an order of its own, and leaves out what fills no batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Complex64
from torch import Tensor

from voxelwave.errors import InputError
from voxelwave.jobs.subsample.images import ImageSet
from voxelwave.ops.seeding import torch_generator


class SubsampleBatch(NamedTuple):
    """Whole k-space of some images."""

    kspace: Complex64[Tensor, "image height width"]
    files: list[str]
    modality: str = "image"


class SubsampleSteps:
    """Every batch by its step; raises InputError where there are fewer images than a batch takes.

    The orders of the first `epochs_before` epochs are others than those of a run without them, and then they are the
    same.
    """

    def __init__(self, images: ImageSet, *, batch_size: int, seed: int, epochs_before: int = 0) -> None:
        self._images, self._batch_size, self._seed, self._before = images, batch_size, seed, epochs_before
        self.steps_per_epoch = len(images.kspace) // batch_size
        if self.steps_per_epoch == 0:
            raise InputError(
                f"there are {len(images.kspace)} images to train on, fewer than training.batch_size={batch_size}: "
                "lower it"
            )

    def __getitem__(self, step: int) -> SubsampleBatch:
        """Return the batch of `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(
            len(self._images.kspace), generator=torch_generator(self._seed, "order", epoch - self._before)
        )
        chosen = order[place * self._batch_size :][: self._batch_size]
        return SubsampleBatch(self._images.kspace[chosen], [self._images.names[index] for index in chosen.tolist()])

    def batches(self, start_step: int, end_step: int) -> Iterator[SubsampleBatch]:
        """Yield the batches of a range of steps, in order."""
        yield from map(self.__getitem__, range(start_step, end_step))
