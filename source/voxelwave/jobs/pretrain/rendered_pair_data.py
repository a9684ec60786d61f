"""Pairs that are rendered: two views of one labelled head, on the device, in contrasts of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from voxelwave.data.batches.pairs import HeadPairs, PairedLabels, collate_pairs, read_tissues
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config
from voxelwave.jobs.pretrain.data import CONTENT_IS_CHECKED_UP_TO, said_once
from voxelwave.jobs.pretrain.pair_data import PairData, numbered
from voxelwave.jobs.pretrain.pairs_config import PairsConfig
from voxelwave.objectives.cross_contrast import PairedView
from voxelwave.ops.files import content_mark
from voxelwave.ops.seeding import number_and_checksum, torch_generator
from voxelwave.physics.heads3d import Tissue
from voxelwave.physics.heads3d.appearance import CT, render, windowed
from voxelwave.registry import MODALITIES


class RenderedPairData(PairData):
    """Finds the label maps of `data.pairs`, and renders pairs of them; raises InputError where there is none."""

    def __init__(self, config: Config, *, rank: int, world_size: int, pin_memory: bool, console: Console) -> None:
        data, pairs = config.data, config.data.pairs
        assert pairs is not None
        assert pairs.contrasts is not None
        assert pairs.stripped is not None
        self._stripped = pairs.stripped
        self._windows_hu = MODALITIES.build("ct", **data.modalities.get("ct", {})).windows_hu
        self._console, highest = console, max(Tissue)
        subjects = _label_maps(pairs)
        self._label_maps = _usable(list(subjects), highest=highest, console=console)
        self._persons = numbered([subjects[path] for path in self._label_maps])
        if not self._label_maps:
            raise InputError(f"key 'data.pairs.cases': {pairs.cases} has no label map that views could be rendered of")
        contrasts = {name: [of for of in pairs.contrasts if (of == CT) == (name == "ct")] for name in ("mri", "ct")}
        self._contrasts = {name: of for name, of in contrasts.items() if of}
        kinds = {"mri+mri": len(contrasts["mri"]) > 1, "mri+ct": bool(contrasts["mri"] and contrasts["ct"])}
        console.say(f"pairs: {len(self._label_maps)} heads, rendered as {', '.join(pairs.contrasts)}")
        super().__init__(
            config,
            HeadPairs(
                self._label_maps,
                self._contrasts,
                pairs.geometry(data.crop_size),
                highest=highest,
                cached=data.cached_volumes,
            ),
            collate_pairs,
            {kind: len(self._label_maps) for kind, there in kinds.items() if there},
            rank=rank,
            world_size=world_size,
            pin_memory=pin_memory,
        )

    def trained_on(self) -> list[Path]:
        """The label maps."""
        return self._label_maps

    def batches(self, start_step: int, end_step: int) -> Iterator[PairedLabels]:
        """Cut the pairs of a range of steps, in order, and say of each label map once why it had to be passed over."""
        yield from said_once(super().batches(start_step, end_step), self._console)

    def counts(self) -> dict[str, int]:
        """The number of heads by modality in which they are rendered."""
        return dict.fromkeys(self._contrasts, len(self._label_maps))

    def files(self) -> dict[str, list[VolumeFile]]:
        """No image is read: each is rendered."""
        return {name: [] for name in self._contrasts}

    def fingerprint(self) -> dict[str, str]:
        """By modality, the number of label maps and a checksum of their names."""
        return dict.fromkeys(self._contrasts, number_and_checksum([path.name for path in self._label_maps]))

    def contents(self) -> dict[str, dict[str, str]]:
        """A mark of each label map."""
        return {"labels": {str(path): content_mark(path) for path in self._label_maps}}

    def augmented(self, batch: PairedLabels, index: int, device: torch.device) -> tuple[PairedView, PairedView]:
        """Return both views of training batch number `index`, rendered on `device`."""
        heads, persons = batch.heads.to(device), self._persons[batch.heads].to(device)
        one, other = (
            self._rendered(*view, torch_generator(self.seed, "render", self._rank, index, number), device)._replace(
                heads=heads, persons=persons
            )
            for number, view in enumerate(batch.views)
        )
        return one, other

    def _rendered(
        self, labels: Tensor, to_mm: Tensor, contrasts: Sequence[str], generator: torch.Generator, device: torch.device
    ) -> PairedView:
        labels, to_mm = labels.to(device, non_blocking=True), to_mm.to(device, non_blocking=True)
        seen, clean, labels = render(labels, contrasts, generator, stripped=self._stripped)
        if contrasts[0] == CT:
            seen, clean = windowed(seen, self._windows_hu), windowed(clean, self._windows_hu)
        return PairedView(seen, clean, to_mm, labels)


def _label_maps(pairs: PairsConfig) -> dict[Path, str]:
    """Return one label map of each head, and whose it is.

    Several images of one head share it, or each has a copy where they are prepared.
    """
    heads: dict[tuple[str, str], Path] = {}
    for case in pairs.find_cases():
        if case.label is not None:
            heads.setdefault((case.subject, case.session), case.label)
    whose: dict[Path, str] = {}
    for (subject, _), path in heads.items():
        whose.setdefault(path, subject or str(path))
    return whose


def _usable(label_maps: Sequence[Path], *, highest: int, console: Console) -> list[Path]:
    """Return those that can be rendered, of at most 500; of more, all, since reading them would take long."""
    if len(label_maps) > CONTENT_IS_CHECKED_UP_TO:
        return list(label_maps)
    usable = []
    for path in label_maps:
        try:
            read_tissues(path, highest=highest)
            usable.append(path)
        except UnusableVolume as unusable:
            console.say(f"left out {path}: {unusable}")
    return usable
