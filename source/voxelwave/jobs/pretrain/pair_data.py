"""The data of a run on pairs: two views of one labelled head, rendered on the device in contrasts of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from voxelwave.data.batches.alternating import AlternatingSchedule
from voxelwave.data.batches.loaders import Batch
from voxelwave.data.batches.pairs import Geometry, HeadPairs, PairedLabels, collate_pairs
from voxelwave.data.batches.watched import WatchedLoader
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config
from voxelwave.objectives.cross_contrast import PairedView
from voxelwave.ops.files import content_mark
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.physics.heads3d import Tissue
from voxelwave.physics.heads3d.appearance import CT, render, windowed
from voxelwave.registry import MODALITIES

PICTURED_HEADS, PROBED_HEADS = 2, 4


class PairData:
    """Finds the label maps of `data.pairs`, and makes batches of pairs; offers what `TrainingData` does.

    Raises InputError where there is no label map.
    """

    def __init__(self, config: Config, *, rank: int, world_size: int, pin_memory: bool, console: Console) -> None:
        data, training, pairs = config.data, config.training, config.data.pairs
        assert pairs is not None
        self.seed, self._rank, self._pin_memory, self._data = config.run.seed, rank, pin_memory, data
        self._stripped, self._timeout_s = pairs.stripped, config.run.timeout_s
        self._windows_hu = MODALITIES.build("ct", **data.modalities.get("ct", {})).windows_hu
        # Several images of one head share its label map.
        cases = [case for case in find_cases(pairs.cases) if case.label is not None]
        self._label_maps = list(dict.fromkeys(case.label for case in cases if case.label is not None))
        if not self._label_maps:
            raise InputError(f"key 'data.pairs.cases': {pairs.cases} names no label map, of which views are rendered")
        contrasts = {name: [of for of in pairs.contrasts if (of == CT) == (name == "ct")] for name in ("mri", "ct")}
        self._contrasts = {name: of for name, of in contrasts.items() if of}
        kinds = [
            kind
            for kind, there in (
                ("mri+mri", len(contrasts["mri"]) > 1),
                ("mri+ct", bool(contrasts["mri"] and contrasts["ct"])),
            )
            if there
        ]
        console.say(f"pairs: {len(self._label_maps)} heads, rendered as {', '.join(pairs.contrasts)}")
        self._dataset = HeadPairs(
            self._label_maps,
            self._contrasts,
            Geometry(
                data.crop_size,
                spacing_mm=pairs.spacing_mm,
                degrees=pairs.degrees,
                log_stretch=pairs.log_stretch,
                shared=pairs.shared,
            ),
            highest=max(Tissue),
            cached=data.cached_volumes,
        )
        self._schedule = AlternatingSchedule(
            {kind: [len(self._label_maps)] for kind in kinds},
            {kind: training.batch_size[kind.partition("+")[0]] for kind in kinds},
            seed=config.run.seed,
            rank=rank,
            world_size=world_size,
            accumulate=training.accumulate,
            crops_per_volume=data.crops_per_volume,
        )
        self.probe_batches = cache(self._probe_batches)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps until every head was seen at least once in each kind of pair."""
        return self._schedule.steps_per_epoch

    def counts(self) -> dict[str, int]:
        """The number of heads by modality in which they are rendered."""
        return dict.fromkeys(self._contrasts, len(self._label_maps))

    def files(self) -> dict[str, list[VolumeFile]]:
        """No image is read: each is rendered."""
        return {name: [] for name in self._contrasts}

    def fingerprint(self) -> dict[str, str]:
        """The number of label maps and a checksum of their names."""
        return {"labels": f"{len(self._label_maps)}:{key_to_seed(*(path.name for path in self._label_maps)):016x}"}

    def contents(self) -> dict[str, dict[str, str]]:
        """A mark of each label map."""
        return {"labels": {str(path): content_mark(path) for path in self._label_maps}}

    def batches(self, start_step: int, end_step: int) -> Iterator[PairedLabels]:
        """Cut the pairs of a range of steps, in order."""
        yield from self._load(self._schedule.batches(start_step, end_step))

    def augmented(self, batch: PairedLabels, index: int, device: torch.device) -> tuple[PairedView, PairedView]:
        """Return both views of training batch number `index`, rendered on `device`."""
        one, other = (
            self._rendered(*view, torch_generator(self.seed, "render", self._rank, index, number), device)
            for number, view in enumerate(batch.views)
        )
        return one, other

    def picture_batches(self) -> dict[str, Batch]:
        """Two heads in each modality."""
        return self._shown(PICTURED_HEADS)

    def _probe_batches(self) -> dict[str, Batch]:
        return self._shown(PROBED_HEADS)

    def _shown(self, count: int) -> dict[str, Batch]:
        """Views of the first heads, by modality."""
        kinds = {name: f"{name}+{name}" for name in self._contrasts}
        shown = {}
        for name, of in self._contrasts.items():
            kind = kinds[name] if len(of) > 1 else "mri+ct"
            schedule = AlternatingSchedule({kind: [len(self._label_maps)]}, {kind: count}, seed=self.seed)
            (batch,) = self._load(schedule.batches(0, 1))
            views = self.augmented(batch, 0, torch.device("cpu"))
            view = views[0 if kind == kinds[name] else 1]
            shown[name] = Batch(view.seen, name, batch.files, [])
        return shown

    def _load(self, sampler: Any) -> Iterator[PairedLabels]:
        yield from WatchedLoader(
            *(self._dataset, self._dataset.file_of),
            batch_sampler=sampler,
            num_workers=self._data.num_workers,
            timeout_s=self._timeout_s,
            pin_memory=self._pin_memory,
            collate_fn=collate_pairs,
        )

    def _rendered(
        self, labels: Tensor, to_mm: Tensor, contrasts: Sequence[str], generator: torch.Generator, device: torch.device
    ) -> PairedView:
        labels, to_mm = labels.to(device, non_blocking=True), to_mm.to(device, non_blocking=True)
        seen, clean = render(labels, contrasts, generator, stripped=self._stripped)
        if contrasts[0] == CT:
            seen, clean = windowed(seen, self._windows_hu), windowed(clean, self._windows_hu)
        return PairedView(seen, clean, to_mm, labels)
