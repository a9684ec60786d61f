"""Two views of scans: of two that were taken in one session, or of one; each has its own crop, turn and stretch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy import ndarray
from torch import Tensor
from torch.utils.data import Dataset

from voxelwave.data.batches.alternating import Draw
from voxelwave.data.batches.pair_geometry import Geometry, draw_affines
from voxelwave.data.batches.placed_scans import PlacedScan, cut_scan, open_scan, shown_by_both
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.unreadable import may_pass
from voxelwave.data.store import is_stored
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.ops.caching import LastUsed
from voxelwave.ops.seeding import numpy_generator

Pair = tuple[VolumeFile, VolumeFile]


class ScanView(NamedTuple):
    """What one view shows, and the way from its voxels to mm of the space that both views share."""

    volume: Float[Tensor, "channel depth height width"]
    to_mm: Float[Tensor, "4 4"]


class ScanPair(NamedTuple):
    """Both views, of the group with the number `head`; `problems` says which files had to be passed over for them."""

    views: tuple[ScanView, ScanView]
    modality: str
    file: str
    head: int
    problems: list[str]


class PairedScans(NamedTuple):
    """A batch of pairs of one kind: of each view the volumes and the ways to mm, and of each pair its head."""

    views: tuple[tuple[Float[Tensor, "batch channel depth height width"], Float[Tensor, "batch 4 4"]], ...]
    modality: str
    files: list[str]
    heads: Int[Tensor, " batch"]
    problems: list[str]


class ScanPairs(Dataset[ScanPair]):
    """Cuts both views of a pair of scans for each draw, whose `modality` names those of the views, as in "mri+ct".

    A draw's index is that of a group, such as a session, of whose pairs one is drawn. A pair that turns out unusable is
    replaced by another one of its group, else of the next group.

    Args:
        groups: by kind, such as "mri+ct", the pairs of each group; in a pair of one scan twice, both views are of it.
        modalities: by name.
        cached: how many scans that are not stored are kept in memory, in half precision.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[Sequence[Pair]]],
        modalities: Mapping[str, Modality],
        geometry: Geometry,
        *,
        cached: int,
    ) -> None:
        self._groups, self._modalities, self._geometry = groups, modalities, geometry
        self._kept: LastUsed[VolumeFile, PlacedScan] = LastUsed(cached)
        self._unusable: dict[VolumeFile, str] = {}

    def __getitem__(self, draw: Draw) -> ScanPair:
        """Return both views of `draw`; raises InputError where no pair of its kind can be used."""
        groups, generator = self._groups[draw.modality], numpy_generator(*draw.key)
        problems: list[str] = []
        for step in range(len(groups)):
            head = (draw.index + step) % len(groups)
            for number in generator.permutation(len(groups[head])):
                try:
                    return self._cut(groups[head][number], draw.modality, generator, head, problems)
                except UnusableVolume as unusable:
                    problems.append(str(unusable))
        raise InputError(f"no pair of {draw.modality} can be used, of {len(groups)} groups: {problems[0]}")

    def file_of(self, draw: Draw) -> str:
        """Return the paths that `draw` may be of."""
        groups = self._groups[draw.modality]
        return named(*(file for pair in groups[draw.index % len(groups)] for file in pair))

    def _cut(self, pair: Pair, kind: str, generator: np.random.Generator, head: int, problems: list[str]) -> ScanPair:
        one, other = pair
        # Which view a scan is in is told by the kind, where the modalities differ.
        if one.modality == other.modality and generator.random() < 0.5:
            one, other = other, one
        scans = [self._open(file) for file in (one, other)]
        try:
            places_mm = shown_by_both(scans[0].shown, scans[1].shown, least_mm=self._geometry.shared_mm)
        except UnusableVolume as apart:
            raise UnusableVolume(f"{named(*pair)}: {apart}") from None
        affines = list(draw_affines(partial(_two_of, places_mm), self._geometry, generator))
        views = []
        for file, scan, to_mm in zip((one, other), scans, affines, strict=True):
            try:
                volume = cut_scan(scan, to_mm, self._geometry.crop_size)
            except UnusableVolume as damaged:
                raise UnusableVolume(f"{file.path}: {damaged}") from None
            views.append(ScanView(volume, torch.from_numpy(to_mm).float()))
        return ScanPair((views[0], views[1]), kind, named(one, other), head, problems)

    def _open(self, file: VolumeFile) -> PlacedScan:
        """Return a scan, of those kept where it is; raises UnusableVolume, which names it."""
        try:
            if file in self._unusable:
                raise UnusableVolume(self._unusable[file])
            open_it = partial(open_scan, file, self._modalities[file.modality])
            # A stored scan is opened for each crop: kept open it would keep all that was ever read of it in memory.
            return open_it() if is_stored(file.path) else self._kept.get(file, open_it)
        except UnusableVolume as unusable:
            if not is_stored(file.path) and not may_pass(unusable):
                self._unusable[file] = str(unusable)
            raise UnusableVolume(f"{file.path}: {unusable}") from None


def collate_scan_pairs(samples: Sequence[ScanPair]) -> PairedScans:
    """Put pairs of one kind together to a batch."""
    views = tuple(
        (torch.stack([view.volume for view in of]), torch.stack([view.to_mm for view in of]))
        for of in zip(*(sample.views for sample in samples), strict=True)
    )
    problems = list(dict.fromkeys(problem for sample in samples for problem in sample.problems))
    heads = torch.tensor([sample.head for sample in samples])
    return PairedScans(views, samples[0].modality, [sample.file for sample in samples], heads, problems)


def named(*files: VolumeFile) -> str:
    """Return the paths of files, each once."""
    return " and ".join(dict.fromkeys(str(file.path) for file in files))


def _two_of(places_mm: Float64[ndarray, "place 3"], generator: np.random.Generator) -> Float64[ndarray, "2 3"]:
    return places_mm[generator.choice(len(places_mm), 2)]
