"""What a router sees of a volume, and the batches that it learns from; no name of a file is part of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import root_sum_of_squares, sample
from voxelwave.physics.fourier import ifft2c
from voxelwave.physics.samplings import Sampling

CPU = torch.device("cpu")


class RouterVolume(NamedTuple):
    """The images of a volume, the number of its anatomy, and its file, for messages."""

    images: Float32[Tensor, "slice side side"]
    label: int
    file: str


class RouterBatch(NamedTuple):
    """The images of several volumes, one behind the other, and how many are of each."""

    images: Float32[Tensor, "slice side side"]
    counts: list[int]
    labels: Int64[Tensor, " volume"]
    modality: str
    files: list[str]


def volume_images(
    file: KspaceFile,
    sampling: Sampling | None = None,
    generator: torch.Generator | None = None,
    *,
    image_size: int,
    max_slices: int,
    device: torch.device = CPU,
) -> Float32[Tensor, "slice side side"]:
    """Return zero-filled magnitudes of `max_slices` slices at even distances, over the largest value of them all.

    They are of what the file's own mask samples, else of what `sampling` draws, else of all. The whole field of view
    is brought to a square: where the image ends in it is not known of every file that is to be told. They are computed
    on `device`, and lie on the CPU.
    Raises InputError for slices that cannot be used.
    """
    height, width = file.info.size
    sampled = torch.ones(height, width, dtype=torch.bool)
    if file.info.sampled is not None and len(file.info.sampled) == width:
        sampled = torch.tensor(file.info.sampled).repeat(height, 1)
    elif sampling is not None and generator is not None:
        try:
            sampled = sampling((height, width), generator)
        except ValueError as error:
            raise InputError(f"{file.path}: {error}") from None
    count = min(max_slices, len(file))
    images = []
    for number in range(count):
        kspace = file.slice((2 * number + 1) * len(file) // (2 * count))
        image = root_sum_of_squares(ifft2c(sample(kspace, sampled).to(device)))
        images.append(F.interpolate(image[None], size=(image_size, image_size), mode="area")[0, 0].cpu())
    stacked = torch.stack(images)
    return stacked / stacked.max().clamp_min(torch.finfo(stacked.dtype).tiny)


def batch_of(volumes: Sequence[RouterVolume]) -> RouterBatch:
    """Return some volumes as a batch."""
    return RouterBatch(
        torch.cat([volume.images for volume in volumes]),
        [len(volume.images) for volume in volumes],
        torch.tensor([volume.label for volume in volumes]),
        "volume",
        [volume.file for volume in volumes],
    )


class RouterSteps:
    """The batch of every step: each epoch has an order of its own; its last batch may be smaller."""

    def __init__(self, volumes: Sequence[RouterVolume], *, batch_size: int, flip: bool, seed: int) -> None:
        self._volumes, self._batch_size, self._flip, self._seed = volumes, batch_size, flip, seed
        self.steps_per_epoch = -(-len(volumes) // batch_size)

    def batch(self, step: int) -> RouterBatch:
        """Return the batch of `step`."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(len(self._volumes), generator=torch_generator(self._seed, "order", epoch))
        chosen = order[place * self._batch_size :][: self._batch_size].tolist()
        return batch_of([self._turned(index, epoch) for index in chosen])

    def batches(self, start_step: int, end_step: int) -> Iterator[RouterBatch]:
        """Yield the batches of a range of steps, in order."""
        return map(self.batch, range(start_step, end_step))

    def _turned(self, index: int, epoch: int) -> RouterVolume:
        volume = self._volumes[index]
        if not self._flip:
            return volume
        drawn = torch.rand(2, generator=torch_generator(self._seed, "flip", epoch, index)) < 0.5
        sides = [side for side, flipped in zip((1, 2), drawn.tolist(), strict=True) if flipped]
        return volume._replace(images=volume.images.flip(sides))
