"""From draws to batches, the same whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from voxelwave.data.batches.alternating import Draw
from voxelwave.data.batches.cuboids import Cuboids, InMemory, InStore
from voxelwave.data.batches.watched import WORKER_TIMEOUT_S, WatchedLoader
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.unreadable import may_pass
from voxelwave.data.reading.volume import Spacing
from voxelwave.data.scaled import read_scaled
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.ops.caching import LastUsed
from voxelwave.ops.seeding import torch_generator

View = Callable[[Cuboids, torch.Generator], Tensor]


class Sample(NamedTuple):
    """A part of one volume; `problems` says which files had to be passed over to make it."""

    volume: Float[Tensor, "channel depth height width"]
    modality: str
    file: str
    problems: list[str]


class Batch(NamedTuple):
    """Parts of volumes of one modality; `problems` come again with every batch that meets the same file."""

    volume: Float[Tensor, "batch channel depth height width"]
    modality: str
    files: list[str]
    problems: list[str]


class VolumeDataset(Dataset[Sample]):
    """Reads and scales the part of a volume that a draw shows.

    A file that turns out unusable is replaced by the next one of its modality.

    Args:
        files: by modality, source by source.
        modalities: by name.
        view: cuts the part that is trained on out of a volume. Of a stored volume that part alone is read.
        spacing_mm: to resample to; None keeps the spacing of every file.
        cached_volumes: how many scaled volumes each worker process keeps, of those that are not stored. They are
            kept in half precision, an error of at most 0.00025 in [0, 1], far below the noise of a scan and of
            the augmentation, for half the memory. A volume is rounded the same way when first read, so that a
            hit changes no batch.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[VolumeFile]],
        modalities: Mapping[str, Modality],
        view: View,
        *,
        spacing_mm: Spacing | None = None,
        cached_volumes: int = 0,
    ) -> None:
        self._files = {name: list(of_modality) for name, of_modality in files.items()}
        self._modalities, self._view = dict(modalities), view
        self._spacing_mm, self._cached_volumes = spacing_mm, cached_volumes
        self._cache: LastUsed[VolumeFile, InMemory] = LastUsed(cached_volumes)
        self._unusable: dict[VolumeFile, str] = {}

    def __getitem__(self, draw: Draw) -> Sample:
        """Return the sample of `draw`.

        Raises InputError where no file of the modality can be used.
        """
        files = self._files[draw.modality]
        problems: list[str] = []
        for step in range(len(files)):
            file = files[(draw.index + step) % len(files)]
            try:
                if file in self._unusable:
                    raise UnusableVolume(self._unusable[file])
                view = self._view(self._open(file), torch_generator(*draw.key))
                return Sample(view, draw.modality, str(file.path), problems)
            except UnusableVolume as unusable:
                # Of a stored volume a part may be damaged: whether a crop meets it must depend on the draw alone.
                if not is_stored(file.path) and not may_pass(unusable):
                    self._unusable[file] = str(unusable)
                problems.append(f"{file.path}: {unusable}")
        raise InputError(f"none of the {len(files)} {draw.modality} files can be used: {problems[0]}")

    def file_of(self, draw: Draw) -> str:
        """Return the path of the file that `draw` is of."""
        files = self._files[draw.modality]
        return str(files[draw.index % len(files)].path)

    def _open(self, file: VolumeFile) -> Cuboids:
        if is_stored(file.path):
            # Opened for each crop: to keep it open would keep all that was ever read of it in memory.
            return InStore(StoredVolume(file.path), self._modalities[file.modality])
        return self._cache.get(file, lambda: self._read(file))

    def _read(self, file: VolumeFile) -> InMemory:
        volume = read_scaled(file.path, self._modalities[file.modality], spacing_mm=self._spacing_mm).volume
        return InMemory(volume.half() if self._cached_volumes else volume)


def make_loader(
    dataset: VolumeDataset,
    batch_sampler: Sampler[list[Draw]],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    timeout_s: float = WORKER_TIMEOUT_S,
) -> WatchedLoader:
    """Load the batches of `batch_sampler` in order.

    One loader serves a whole run: its workers and their caches end with it. A worker killed for lack of
    shared memory (a container's default is 64 MB) ends the run with a ProcessFault.
    """
    return WatchedLoader(
        dataset,
        dataset.file_of,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        timeout_s=timeout_s,
        pin_memory=pin_memory,
        collate_fn=_collate,
    )


def _collate(samples: list[Sample]) -> Batch:
    problems = list(dict.fromkeys(problem for sample in samples for problem in sample.problems))
    volume = torch.stack([sample.volume for sample in samples])
    return Batch(volume, samples[0].modality, [sample.file for sample in samples], problems)
