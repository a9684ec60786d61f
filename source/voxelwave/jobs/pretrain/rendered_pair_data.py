"""Pairs that are rendered: two views of one labelled head, on the device, in contrasts of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from voxelwave.data.batches.pairs import HeadPairs, PairedLabels, collate_pairs
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config
from voxelwave.jobs.pretrain.pair_data import PairData
from voxelwave.objectives.cross_contrast import PairedView
from voxelwave.ops.files import content_mark
from voxelwave.ops.seeding import key_to_seed, torch_generator
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
        # Several images of one head share its label map.
        cases = [case for case in find_cases(pairs.cases) if case.label is not None]
        self._label_maps = list(dict.fromkeys(case.label for case in cases if case.label is not None))
        if not self._label_maps:
            raise InputError(f"key 'data.pairs.cases': {pairs.cases} names no label map, of which views are rendered")
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
                highest=max(Tissue),
                cached=data.cached_volumes,
            ),
            collate_pairs,
            {kind: len(self._label_maps) for kind, there in kinds.items() if there},
            rank=rank,
            world_size=world_size,
            pin_memory=pin_memory,
        )

    def counts(self) -> dict[str, int]:
        """The number of heads by modality in which they are rendered."""
        return dict.fromkeys(self._contrasts, len(self._label_maps))

    def files(self) -> dict[str, list[VolumeFile]]:
        """No image is read: each is rendered."""
        return {name: [] for name in self._contrasts}

    def fingerprint(self) -> dict[str, str]:
        """By modality, the number of label maps and a checksum of their names."""
        named = f"{len(self._label_maps)}:{key_to_seed(*(path.name for path in self._label_maps)):016x}"
        return dict.fromkeys(self._contrasts, named)

    def contents(self) -> dict[str, dict[str, str]]:
        """A mark of each label map."""
        return {"labels": {str(path): content_mark(path) for path in self._label_maps}}

    def augmented(self, batch: PairedLabels, index: int, device: torch.device) -> tuple[PairedView, PairedView]:
        """Return both views of training batch number `index`, rendered on `device`."""
        heads = batch.heads.to(device)
        one, other = (
            self._rendered(*view, torch_generator(self.seed, "render", self._rank, index, number), device)._replace(
                heads=heads
            )
            for number, view in enumerate(batch.views)
        )
        return one, other

    def _rendered(
        self, labels: Tensor, to_mm: Tensor, contrasts: Sequence[str], generator: torch.Generator, device: torch.device
    ) -> PairedView:
        labels, to_mm = labels.to(device, non_blocking=True), to_mm.to(device, non_blocking=True)
        seen, clean = render(labels, contrasts, generator, stripped=self._stripped)
        if contrasts[0] == CT:
            seen, clean = windowed(seen, self._windows_hu), windowed(clean, self._windows_hu)
        return PairedView(seen, clean, to_mm, labels)
