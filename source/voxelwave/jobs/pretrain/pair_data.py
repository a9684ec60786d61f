"""The data of a run on pairs: the kinds of pairs take turns, and each batch is of one kind, such as "mri+ct"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from voxelwave.data.batches.alternating import AlternatingSchedule, Draw
from voxelwave.data.batches.loaders import Batch
from voxelwave.data.batches.pairs import HeadPairs
from voxelwave.data.batches.scan_pairs import ScanPairs
from voxelwave.data.batches.watched import WatchedLoader
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.jobs.pretrain.config import Config
from voxelwave.objectives.cross_contrast import PairedView

PICTURED_HEADS, PROBED_HEADS = 2, 4


class PairData(ABC):
    """Makes batches of pairs; offers what `TrainingData` does, whatever the source of the views.

    Args:
        dataset: cuts both views of a draw.
        collate: puts what it cuts together to a batch.
        sizes: the number of heads, or of groups of scans, by kind of pair, in the order in which kinds take turns.
    """

    def __init__(
        self,
        config: Config,
        dataset: HeadPairs | ScanPairs,
        collate: Callable[[Any], Any],
        sizes: Mapping[str, int],
        *,
        rank: int,
        world_size: int,
        pin_memory: bool,
    ) -> None:
        self.seed, self._rank = config.run.seed, rank
        self._dataset, self._collate, self._sizes = dataset, collate, dict(sizes)
        self._pin_memory, self._num_workers, self._timeout_s = (
            pin_memory,
            config.data.num_workers,
            config.run.timeout_s,
        )
        self._schedule = AlternatingSchedule(
            {kind: [size] for kind, size in sizes.items()},
            {kind: min(config.training.batch_size[of] for of in kind.split("+")) for kind in sizes},
            seed=config.run.seed,
            rank=rank,
            world_size=world_size,
            accumulate=config.training.accumulate,
            crops_per_volume=config.data.crops_per_volume,
        )
        self.probe_batches = cache(self._probe_batches)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps until every head, or group of scans, was seen at least once in each kind of pair."""
        return self._schedule.steps_per_epoch

    @abstractmethod
    def trained_on(self) -> list[Path]:
        """All files that views are made of."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """The number of what views are made of, by the modality of these."""

    @abstractmethod
    def files(self) -> dict[str, list[VolumeFile]]:
        """The scans that views are cut out of, by modality."""

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """By modality, the number of files and a checksum of their names, in order."""

    @abstractmethod
    def contents(self) -> dict[str, dict[str, str]]:
        """A mark of each file."""

    @abstractmethod
    def augmented(self, batch: Any, index: int, device: torch.device) -> tuple[PairedView, PairedView]:
        """Return both views of training batch number `index`, as they are trained on, on `device`."""

    def batches(self, start_step: int, end_step: int) -> Iterator[Any]:
        """Cut the pairs of a range of steps, in order."""
        yield from self._load(self._schedule.batches(start_step, end_step))

    def picture_batches(self) -> dict[str, Batch]:
        """Two views of each modality."""
        return self._shown(PICTURED_HEADS)

    def _probe_batches(self) -> dict[str, Batch]:
        return self._shown(PROBED_HEADS)

    def _shown(self, count: int) -> dict[str, Batch]:
        """Views of the first heads, by modality."""
        shown = {}
        for name in self.counts():
            alike = f"{name}+{name}"
            kind = alike if alike in self._sizes else next(kind for kind in self._sizes if name in kind.split("+"))
            schedule = AlternatingSchedule({kind: [self._sizes[kind]]}, {kind: count}, seed=self.seed)
            (batch,) = self._load(schedule.batches(0, 1))
            view = self.augmented(batch, 0, torch.device("cpu"))[kind.split("+").index(name)]
            shown[name] = Batch(view.seen, name, batch.files, [])
        return shown

    def _load(self, sampler: Sampler[list[Draw]]) -> WatchedLoader:
        return WatchedLoader(
            *(self._dataset, self._dataset.file_of),
            batch_sampler=sampler,
            num_workers=self._num_workers,
            timeout_s=self._timeout_s,
            pin_memory=self._pin_memory,
            collate_fn=self._collate,
        )


def numbered(names: Sequence[str]) -> Int[Tensor, " head"]:
    """Return a number for each name, the same for the same one."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.int64)
