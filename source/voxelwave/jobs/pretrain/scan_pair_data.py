"""Pairs of scans: of two that were taken in one session, or of one that is seen twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from voxelwave.data.augmentations import Augment
from voxelwave.data.batches.scan_pairs import Pair, PairedScans, ScanPairs, collate_scan_pairs
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.store import is_stored
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config
from voxelwave.jobs.pretrain.data import MARKED_BLOCKS, said_once
from voxelwave.jobs.pretrain.found_pairs import find_pairs
from voxelwave.jobs.pretrain.pair_data import PairData, numbered
from voxelwave.objectives.cross_contrast import PairedView
from voxelwave.ops.files import content_mark
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.registry import AUGMENTATIONS, MODALITIES


class ScanPairData(PairData):
    """Finds the scans of `data.pairs`, prints which are left out and why, and makes batches of pairs of them.

    Raises InputError where no pair is left, or none with one of the modalities.
    """

    def __init__(self, config: Config, *, rank: int, world_size: int, pin_memory: bool, console: Console) -> None:
        data, pairs = config.data, config.data.pairs
        assert pairs is not None
        self._console = console
        modalities = {name: MODALITIES.build(name, **data.modalities[name]) for name in config.modalities()}
        self._pairs, subjects = find_pairs(config, modalities, console)
        self._persons = {kind: numbered(of) for kind, of in subjects.items()}
        self._files: dict[str, list[VolumeFile]] = {name: [] for name in modalities}
        for file in dict.fromkeys(file for _, pair in self._each() for file in pair):
            self._files[file.modality].append(file)
        missing = [name for name, files in self._files.items() if not files]
        if missing:
            raise InputError(
                f"key 'data.pairs.modalities': no pair of {pairs.cases} has a scan of {missing[0]}: leave that out"
            )
        self._augment = {
            name: Augment([AUGMENTATIONS.build(step, **settings) for step, settings in data.augment[name].items()])
            for name in modalities
        }
        numbers = ", ".join(f"{len(of)} as {kind}" for kind, of in self._pairs.items())
        scans = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        console.say(f"pairs of {scans} scans; sessions: {numbers}")
        raw = [file for files in self._files.values() for file in files if not is_stored(file.path)]
        if len(raw) > data.cached_volumes:
            console.say(
                f"warning: {len(raw)} scans are not prepared, and read whole for each pair: raise data.cached_volumes, "
                f"or see `voxelwave prepare --help`"
            )
        super().__init__(
            config,
            ScanPairs(self._pairs, modalities, pairs.geometry(data.crop_size), cached=data.cached_volumes),
            collate_scan_pairs,
            {kind: len(of) for kind, of in self._pairs.items()},
            rank=rank,
            world_size=world_size,
            pin_memory=pin_memory,
        )

    def trained_on(self) -> list[Path]:
        """The scans."""
        return [file.path for files in self._files.values() for file in files]

    def counts(self) -> dict[str, int]:
        """The number of scans of each modality."""
        return {name: len(files) for name, files in self._files.items()}

    def files(self) -> dict[str, list[VolumeFile]]:
        """The scans of each modality."""
        return self._files

    def fingerprint(self) -> dict[str, str]:
        """The number of scans of each modality, and a checksum of the pairs that they are in, in order."""
        names: dict[str, list[str]] = {name: [] for name in self._files}
        for place, (one, other) in self._each():
            for name in {one.modality, other.modality}:
                names[name].append(f"{place} {_name_and_size(one)} {_name_and_size(other)}")
        return {name: f"{len(self._files[name])}:{key_to_seed(*of):016x}" for name, of in names.items()}

    def contents(self) -> dict[str, dict[str, str]]:
        """A mark of each scan, by modality."""
        return {
            name: {str(file.path): content_mark(file.path, blocks=MARKED_BLOCKS) for file in files}
            for name, files in self._files.items()
        }

    def batches(self, start_step: int, end_step: int) -> Iterator[PairedScans]:
        """Cut the pairs of a range of steps, in order, and say of each once why it had to be passed over."""
        yield from said_once(super().batches(start_step, end_step), self._console)

    def augmented(self, batch: PairedScans, index: int, device: torch.device) -> tuple[PairedView, PairedView]:
        """Return both views of training batch number `index` on `device`; what is seen of them is augmented there."""
        views, heads = [], batch.heads.to(device)
        persons = self._persons[batch.modality][batch.heads].to(device)
        for number, ((volume, to_mm), name) in enumerate(zip(batch.views, batch.modality.split("+"), strict=True)):
            clean = volume.to(device, non_blocking=True)
            generator = torch_generator(self.seed, "augment", self._rank, index, number)
            seen = self._augment[name](clean, generator)
            views.append(PairedView(seen, clean, to_mm.to(device, non_blocking=True), heads=heads, persons=persons))
        return views[0], views[1]

    def _each(self) -> Iterator[tuple[str, Pair]]:
        """Yield all pairs, each with its kind and the number of its group."""
        for kind, groups in self._pairs.items():
            for number, group in enumerate(groups):
                for pair in group:
                    yield f"{kind} {number}", pair


def _name_and_size(file: VolumeFile) -> str:
    return f"{file.path.name} {file.path.stat().st_size}"
