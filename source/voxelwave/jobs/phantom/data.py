"""Batches of phantom triplets as a function of the step, the same whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from voxelwave.data.batches.watched import WORKER_TIMEOUT_S, WatchedLoader
from voxelwave.data.kspace.complex_transforms import (
    Augmentation,
    CoilCompression,
    ComplexPipeline,
    Normalize,
    ToCompatibleTensor,
    Undersample,
)
from voxelwave.data.kspace.phantoms import RandomPhantomDataset, RandomPhantomTripletDataset
from voxelwave.jobs.phantom.config import PhantomData, ViewConfig
from voxelwave.ops.memory import one_thread
from voxelwave.ops.seeding import torch_generator
from voxelwave.registry import SAMPLINGS


class PhantomBatch(NamedTuple):
    """Both views of some phantoms and a view of others, one behind the other, and the numbers of the phantoms."""

    images: Float[Tensor, "3*batch channel height width"]
    numbers: Int[Tensor, "2 batch"]
    modality: str
    files: list[str]


def seen(config: ViewConfig, *, augmented: bool) -> list[nn.Module]:
    """Return undersampling, and the augmentation where it is wanted: what changes an image, but not its form."""
    undersample = Undersample(SAMPLINGS.build(config.sampling.name, **config.sampling.settings))
    moved = [Augmentation(max_degrees=config.max_degrees, max_shift=config.max_shift)] if augmented else []
    return [undersample, *moved]


def view(config: ViewConfig, *, augmented: bool, num_virtual_coils: int | None = None) -> ComplexPipeline:
    """Return the way from a multi-coil image to what the model reads."""
    normalize = Normalize() if config.normalize is None else Normalize(**config.normalize.model_dump())
    compress = [] if num_virtual_coils is None else [CoilCompression(num_virtual=num_virtual_coils)]
    return ComplexPipeline(*seen(config, augmented=augmented), *compress, normalize, ToCompatibleTensor())


def views(config: PhantomData, *, augmented: bool) -> tuple[ComplexPipeline, ComplexPipeline]:
    """Return the ways of both views."""
    first, second = (
        view(of, augmented=augmented, num_virtual_coils=config.num_virtual_coils)
        for of in (config.first, config.second)
    )
    return first, second


def phantoms(config: PhantomData, *, seed: int, validation: bool) -> RandomPhantomDataset:
    """Return the phantoms of training, or those of validation, whose numbers follow and which never change."""
    return RandomPhantomDataset(
        config.val_length if validation else config.train_length,
        image_size=config.image_size,
        num_coils=config.num_coils,
        noise=config.noise,
        seed=seed,
        offset=config.train_length if validation else 0,
        deterministic=validation,
    )


def triplets(config: PhantomData, *, seed: int, validation: bool) -> RandomPhantomTripletDataset:
    """Return the triplets of training, or those of validation, which are not augmented."""
    of = phantoms(config, seed=seed, validation=validation)
    return RandomPhantomTripletDataset(of, *views(config, augmented=not validation), rescan=config.rescan)


class PhantomSteps(Dataset[PhantomBatch]):
    """The batch of every step: each epoch has an order of its own, and leaves out what fills no batch."""

    def __init__(self, triplets: RandomPhantomTripletDataset, *, batch_size: int, seed: int) -> None:
        self._triplets, self._batch_size, self._seed = triplets, batch_size, seed
        self.steps_per_epoch = len(triplets) // batch_size

    def __getitem__(self, step: int) -> PhantomBatch:
        """Return the batch of `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self._triplets), generator=torch_generator(self._seed, "order", epoch))
        chosen = order[place * self._batch_size :][: self._batch_size].tolist()
        self._triplets.set_epoch(epoch)
        return _batch(self._triplets, chosen)

    def batches(
        self,
        start_step: int,
        end_step: int,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        timeout_s: float = WORKER_TIMEOUT_S,
    ) -> Iterator[PhantomBatch]:
        """Yield the batches of a range of steps, in order; pinned, a copy to a GPU waits for nothing."""
        yield from WatchedLoader(
            self,
            "the phantoms of step {}".format,
            batch_size=None,
            sampler=range(start_step, end_step),
            num_workers=num_workers,
            pin_memory=pin_memory,
            timeout_s=timeout_s,
        )


class AllBatches:
    """All triplets in order, whenever it is gone through; the last batch may be smaller.

    Those of validation never change, and to make them takes a third of an epoch's time: the first ones, up to
    `kept_bytes` of images, are kept.
    """

    def __init__(self, triplets: RandomPhantomTripletDataset, *, batch_size: int, kept_bytes: int = 0) -> None:
        self._triplets, self._batch_size, self._room = triplets, batch_size, kept_bytes
        self._kept: list[PhantomBatch] = []

    def __iter__(self) -> Iterator[PhantomBatch]:
        """Yield the batches."""
        kept = list(self._kept)
        yield from kept
        for start in range(len(kept) * self._batch_size, len(self._triplets), self._batch_size):
            batch = _batch(self._triplets, list(range(start, min(start + self._batch_size, len(self._triplets)))))
            if self._room >= batch.images.nbytes and len(self._kept) * self._batch_size == start:
                self._room -= batch.images.nbytes
                self._kept.append(batch)
            yield batch


def _batch(triplets: RandomPhantomTripletDataset, chosen: list[int]) -> PhantomBatch:
    numbers = torch.tensor([chosen, [triplets.other(index) for index in chosen]])
    names = [f"phantom {triplets.phantoms.offset + index}" for index in chosen]
    with one_thread():  # as in a worker process
        images = triplets.triplets(chosen).flatten(0, 1)
    return PhantomBatch(images, numbers, "phantom", names)
