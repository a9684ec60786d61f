"""The data of a pretraining run: the files that are used, and the batch of every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxelwave.data.augmentations import Augment
from voxelwave.data.batches.alternating import AlternatingSchedule
from voxelwave.data.batches.loaders import Batch, VolumeDataset, make_loader
from voxelwave.data.batches.views import RandomView
from voxelwave.data.batches.waiting import crop_times
from voxelwave.data.listing.discovery import Source, VolumeFile, find_files
from voxelwave.data.listing.selection import accept_volumes
from voxelwave.data.store import is_stored
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config
from voxelwave.ops.files import content_mark
from voxelwave.ops.seeding import number_and_checksum, torch_generator
from voxelwave.registry import AUGMENTATIONS, MODALITIES

CONTENT_IS_CHECKED_UP_TO = 500  # files: reading each once then takes minutes at most
PICTURED_VOLUMES = 2
MARKED_BLOCKS = 64  # of a file without checksums: reading thousands of them whole would take as long as training


class TrainingData:
    """Finds the volumes of a configuration, prints what is left out and why, and makes batches.

    Raises InputError where a source holds nothing usable.
    """

    def __init__(self, config: Config, *, rank: int, world_size: int, pin_memory: bool, console: Console) -> None:
        data, training = config.data, config.training
        self.seed = config.run.seed
        names = config.modalities()
        self._modalities = {name: MODALITIES.build(name, **data.modalities[name]) for name in names}
        sources = [
            Source(source.path, source.modality, source.split)
            for name in names
            for source in data.sources
            if source.modality == name
        ]
        selection = accept_volumes(
            sources,
            self._modalities,
            max_volumes_per_modality=data.max_volumes_per_modality,
            check_content=_check_content(config, sources),
            spacing_mm=data.spacing_mm,
        )
        for refusal in selection.refused:
            console.say(f"left out {refusal.path}: {refusal.reason}")
        self._files = selection.files()
        console.say("volumes: " + ", ".join(f"{count} {name}" for name, count in self.counts().items()))
        self._data, self._pin_memory, self._timeout_s = data, pin_memory, config.run.timeout_s
        self._view = RandomView(
            crop_size=data.crop_size, view_share=data.view_share, foreground_share=data.foreground_share
        )
        # Several crops of a volume are worth one reading of it where that reading is kept.
        self._dataset = self._make_dataset(max(data.cached_volumes, int(data.crops_per_volume > 1)))
        self._schedule = AlternatingSchedule(
            selection.sizes(),
            training.batch_size,
            seed=config.run.seed,
            rank=rank,
            world_size=world_size,
            accumulate=training.accumulate,
            steps=data.steps,
            temperature=data.source_temperature,
            crops_per_volume=data.crops_per_volume,
        )
        self._augment = {
            name: Augment([AUGMENTATIONS.build(step, **settings) for step, settings in data.augment[name].items()])
            for name in names
        }
        self._rank, self._console = rank, console
        self._warn_of_waiting()
        self.probe_batches = cache(self._probe_batches)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps until every volume was seen at least once."""
        return self._schedule.steps_per_epoch

    def counts(self) -> dict[str, int]:
        """The number of volumes of each modality, in the order of their steps."""
        return {name: len(files) for name, files in self._files.items()}

    def trained_on(self) -> list[Path]:
        """All files."""
        return [file.path for files in self._files.values() for file in files]

    def files(self) -> dict[str, list[VolumeFile]]:
        """The files of each modality, source by source."""
        return self._files

    def fingerprint(self) -> dict[str, str]:
        """The number of volumes of each modality and a checksum of their names and sizes, in order."""
        names = {
            name: [f"{file.path.name} {file.path.stat().st_size}" for file in files]
            for name, files in self._files.items()
        }
        return {name: number_and_checksum(of) for name, of in names.items()}

    def contents(self) -> dict[str, dict[str, str]]:
        """A mark of each volume, by modality."""
        return {
            name: {str(file.path): content_mark(file.path, blocks=MARKED_BLOCKS) for file in files}
            for name, files in self._files.items()
        }

    def batches(self, start_step: int, end_step: int) -> Iterator[Batch]:
        """Load the batches of a range of steps, in order, and say of each file once why it had to be passed over."""
        loader = make_loader(
            self._dataset,
            self._schedule.batches(start_step, end_step),
            num_workers=self._data.num_workers,
            pin_memory=self._pin_memory,
            timeout_s=self._timeout_s,
        )
        yield from said_once(loader, self._console)

    def augmented(self, batch: Batch, index: int, device: torch.device) -> Tensor:
        """Return the volumes of training batch number `index` on `device`, augmented there."""
        generator = torch_generator(self.seed, "augment", self._rank, index)
        return self._augment[batch.modality](batch.volume.to(device, non_blocking=True), generator)

    def picture_batches(self) -> dict[str, Batch]:
        """Two volumes of each modality as they lie, upright and without noise."""
        return self._first(PICTURED_VOLUMES)

    def _probe_batches(self) -> dict[str, Batch]:
        """One batch of each modality, always the same."""
        return self._first(max(self._schedule.batch_size[name] for name in self._files))

    def _first(self, count: int) -> dict[str, Batch]:
        sizes = {name: [number] for name, number in self.counts().items()}
        schedule = AlternatingSchedule(sizes, dict.fromkeys(sizes, count), seed=self.seed)
        loader = make_loader(self._make_dataset(0), schedule.batches(0, len(sizes)))
        return {batch.modality: batch for batch in loader}

    def _warn_of_waiting(self) -> None:
        """Measure on one volume what reading it whole for each crop costs, where that has to be done."""
        raw = [file for of in self._files.values() for file in of if not is_stored(file.path)]
        if len(raw) <= self._data.cached_volumes:
            return
        try:
            whole_s, stored_s = crop_times(
                raw[0].path, self._modalities[raw[0].modality], self._view, spacing_mm=self._data.spacing_mm
            )
        except (UnusableVolume, OSError):
            return
        self._console.say(
            f"warning: {len(raw)} volumes are not prepared, and read whole for each crop: {raw[0].path.name} takes "
            f"{whole_s * 1e3:.0f} ms, prepared {stored_s * 1e3:.1f} ms, {whole_s / stored_s:.0f} times less; "
            f"see `voxelwave prepare --help`",
        )

    def _make_dataset(self, cached_volumes: int) -> VolumeDataset:
        return VolumeDataset(
            self._files,
            self._modalities,
            self._view,
            spacing_mm=self._data.spacing_mm,
            cached_volumes=cached_volumes,
        )


def said_once(batches: Iterable[Any], console: Console) -> Iterator[Any]:
    """Yield batches, and say each of their `problems` once."""
    told = set[str]()
    for batch in batches:
        for problem in batch.problems:
            if problem not in told:
                told.add(problem)
                console.say(f"left out {problem}")
        yield batch


def _check_content(config: Config, sources: list[Source]) -> bool:
    if config.data.check_content is not None:
        return config.data.check_content
    limit = config.data.max_volumes_per_modality
    num_files: dict[str, int] = {}
    for source in sources:
        num_files[source.modality] = num_files.get(source.modality, 0) + len(find_files(source))
    to_read = sum(min(count, limit or count) for count in num_files.values())
    return to_read <= CONTENT_IS_CHECKED_UP_TO
