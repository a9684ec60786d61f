"""Two views of one generated head, cut out of its label map: each has its own place and contrast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, UInt8
from numpy import ndarray
from torch import Tensor
from torch.utils.data import Dataset

from voxelwave.contracts import Grid
from voxelwave.data.batches.alternating import Draw
from voxelwave.data.batches.pair_geometry import Geometry, Places, draw_affines
from voxelwave.data.label_maps import LabelMap, read_labels
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.ops.caching import LastUsed
from voxelwave.ops.seeding import numpy_generator


class HeadView(NamedTuple):
    """Tissues as one view shows them, and the way from its voxels to mm of the head."""

    labels: UInt8[Tensor, "depth height width"]
    to_mm: Float[Tensor, "4 4"]
    contrast: str


class PairSample(NamedTuple):
    """Both views of one head, the modalities of these, as in "mri+ct", and the number of the head.

    `problems` says which label maps had to be passed over for it.
    """

    views: tuple[HeadView, HeadView]
    modality: str
    file: str
    head: int
    problems: list[str]


class HeadPairs(Dataset[PairSample]):
    """Cuts two views of a label map for each draw, whose `modality` names those of both views, as in "mri+ct".

    A label map that turns out unusable is replaced by the next one.

    Args:
        label_maps: files with values from 0, which is air, to `highest`.
        contrasts: by modality, those that a view may be of; two views of one modality differ.
        cached: how many label maps are kept in memory.
    """

    def __init__(
        self,
        label_maps: Sequence[Path],
        contrasts: Mapping[str, Sequence[str]],
        geometry: Geometry,
        *,
        highest: int,
        cached: int,
    ) -> None:
        self._label_maps, self._contrasts, self._geometry = list(label_maps), contrasts, geometry
        self._highest = highest
        self._kept: LastUsed[Path, LabelMap] = LastUsed(cached)

    def __getitem__(self, draw: Draw) -> PairSample:
        """Return both views of `draw`; raises InputError where no label map can be used."""
        generator, problems = numpy_generator(*draw.key), list[str]()
        for step in range(len(self._label_maps)):
            number = (draw.index + step) % len(self._label_maps)
            try:
                path = self._label_maps[number]
                head = self._kept.get(path, partial(read_tissues, path, highest=self._highest))
                break
            except UnusableVolume as unusable:
                problems.append(f"{self._label_maps[number]}: {unusable}")
        else:
            raise InputError(f"none of the {len(problems)} label maps can be used; the first, {problems[0]}")
        modalities = draw.modality.split("+")
        names = [self._contrasts[name] for name in modalities]
        if modalities[0] == modalities[1]:
            chosen = [str(name) for name in generator.choice(names[0], 2, replace=False)]
        else:
            chosen = [str(generator.choice(of)) for of in names]
        affines = draw_affines(tissue_places(head), self._geometry, generator)
        one, other = (
            HeadView(cut_labels(head, to_mm, self._geometry.crop_size), torch.from_numpy(to_mm).float(), contrast)
            for to_mm, contrast in zip(affines, chosen, strict=True)
        )
        return PairSample((one, other), draw.modality, str(self._label_maps[number]), number, problems)

    def file_of(self, draw: Draw) -> str:
        """Return the path of the label map that `draw` is of."""
        return str(self._label_maps[draw.index])


def read_tissues(path: Path, *, highest: int) -> LabelMap:
    """Read a label map of tissues from 0, which is air, to `highest`; raises UnusableVolume for another one."""
    labels = read_labels(path)
    least, most = int(labels.array.min()), int(labels.array.max())
    if least < 0 or most > highest:
        raise UnusableVolume(f"its values go from {least} to {most}, and tissues from 0 to {highest}")
    if not most:
        raise UnusableVolume("it shows nothing but air")
    return LabelMap(labels.array.astype(np.uint8), labels.affine)


class PairedLabels(NamedTuple):
    """A batch of pairs: of each view the labels, the ways to mm, and the contrasts, which are of one modality."""

    views: tuple[tuple[UInt8[Tensor, "batch depth height width"], Float[Tensor, "batch 4 4"], list[str]], ...]
    modality: str
    files: list[str]
    heads: Int[Tensor, " batch"]
    problems: list[str]


def tissue_places(head: LabelMap) -> Places:
    """Return what draws voxels that are not air, in mm."""
    inside = np.flatnonzero(head.array)

    def draw(generator: np.random.Generator) -> Float64[ndarray, "2 3"]:
        places = np.stack(np.unravel_index(generator.choice(inside, 2), head.array.shape), -1)
        placed: Float64[ndarray, "2 3"] = places @ head.affine[:3, :3].T + head.affine[:3, 3]
        return placed

    return draw


def cut_labels(head: LabelMap, to_mm: ndarray, size: Grid) -> UInt8[Tensor, "depth height width"]:
    """Return the nearest label of each voxel of a view, 0 outside of the label map."""
    way = np.linalg.inv(head.affine) @ to_mm
    planes, rows, columns = (np.arange(side) for side in size)
    # A linear map of a grid is a sum of three vectors: one for the planes, one for the rows, one for the columns.
    nearest, inside = [], np.True_
    for axis, side in enumerate(head.array.shape):
        place = (
            (way[axis, 0] * planes + way[axis, 3])[:, None, None]
            + (way[axis, 1] * rows)[:, None]
            + way[axis, 2] * columns
        )
        index = np.floor(place + 0.5).astype(np.int32)
        inside = inside & (index >= 0) & (index < side)
        nearest.append(index.clip(0, side - 1))
    return torch.from_numpy(np.where(inside, head.array[tuple(nearest)], 0).astype(np.uint8))


def collate_pairs(samples: Sequence[PairSample]) -> PairedLabels:
    """Put pairs of one kind together to a batch."""
    views = tuple(
        (
            torch.stack([view.labels for view in of]),
            torch.stack([view.to_mm for view in of]),
            [view.contrast for view in of],
        )
        for of in zip(*(sample.views for sample in samples), strict=True)
    )
    heads = torch.tensor([sample.head for sample in samples])
    problems = list(dict.fromkeys(problem for sample in samples for problem in sample.problems))
    return PairedLabels(views, samples[0].modality, [sample.file for sample in samples], heads, problems)
