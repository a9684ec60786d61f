"""Label maps: which class each value stands for, whose image they are of, and crops of both at the same place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from nibabel import orientations
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.batches.cuboids import Cuboid, InMemory
from voxelwave.data.batches.views import RandomView, pad
from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.data.reading.volume import Affine, spacing_of
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import UnusableVolume

LARGEST_VALUE = 2**24  # up to here whole numbers are exact in float32
MOST_CLASSES = 254
OTHER = 255
SAME_PLACE = 0.1  # of a voxel: tools round affines
SHOWN_VALUES = 8
RANGE = re.compile(r"(\d+)(?:-(\d+))?")

Labels = UInt8[ndarray, "depth height width"]


class LabelMap(NamedTuple):
    """Whole numbers, axes to right, anterior, superior; `affine` leads to mm."""

    array: Integer[ndarray, "depth height width"]
    affine: Affine


class Classes:
    """Names of classes and the label values that each stands for; 0 is the background and every prediction's 0.

    Args:
        values: numbers, and ranges such as "1000-2035" with both ends, by the name of their class.
        others: "error" or "background": what a value is of which no class speaks.

    Raises:
        ValueError: for what is no such value, and for one that is in two classes.
    """

    def __init__(self, values: Mapping[str, Sequence[int | str]], *, others: str = "error") -> None:
        if not 1 <= len(values) <= MOST_CLASSES or others not in ("error", "background"):
            raise ValueError(
                f"there are 1 to {MOST_CLASSES} classes, and other labels are 'error' or 'background', got "
                f"{len(values)} and '{others}'"
            )
        self.names = ("background", *values)
        self._others_are_background = others == "background"
        ranges = {name: [_range(value, name) for value in of] for name, of in values.items()}
        self._place = np.full(2 + max((last for of in ranges.values() for _, last in of), default=0), OTHER, np.uint8)
        self._place[0] = 0
        for index, (name, of) in enumerate(ranges.items(), start=1):
            if not of or not name.strip() or name == "background":
                raise ValueError(f"class '{name}' needs a name and label values of its own")
            for first, last in of:
                taken = self._place[first : last + 1]
                if (taken != OTHER).any():
                    other = self.names[int(taken[taken != OTHER][0])]
                    raise ValueError(f"label value {first}…{last} of class '{name}' is in class '{other}' too")
                taken[:] = index

    def __len__(self) -> int:
        return len(self.names)

    def indices(self, labels: Integer[ndarray, "depth height width"]) -> Labels:
        """Return the place of each voxel's class in `names`.

        Raises:
            UnusableVolume: naming the values of which no class speaks, unless these are background.
        """
        beyond = len(self._place) - 1
        placed = self._place[np.where((labels < 0) | (labels > beyond), beyond, labels)]
        outside = placed == OTHER
        if outside.any():
            if not self._others_are_background:
                values = np.unique(labels[outside])
                named = ", ".join(str(value) for value in values[:SHOWN_VALUES])
                more = f" and {len(values) - SHOWN_VALUES} more" if len(values) > SHOWN_VALUES else ""
                raise UnusableVolume(
                    f"its values {named}{more} are in no class: add them to task.classes, or set "
                    f"task.other_labels=background"
                )
            placed[outside] = 0
        return placed


def read_labels(path: Path) -> LabelMap:
    """Read a label map, stored or not; raises UnusableVolume where it is none, with the reason."""
    if is_stored(path):
        stored = StoredVolume(path)
        return LabelMap(stored.read().astype(np.int32), stored.affine)
    volume = read_volume(path)
    array = volume.array
    if array.ndim != 3:
        raise UnusableVolume(f"a label map has three axes, got shape {array.shape}")
    if not np.array_equal(array, np.rint(array)):
        raise UnusableVolume("its values are not whole numbers: it is no label map")
    if np.abs(array).max() > LARGEST_VALUE:
        raise UnusableVolume(f"its values go beyond {LARGEST_VALUE}: number the labels anew")
    return LabelMap(array.astype(np.int32), volume.affine)


def check_same_grid(labels: LabelMap, image: Path) -> None:
    """Raise UnusableVolume where `labels` do not lie on the voxels of the file `image`."""
    shape, affine = _grid_towards_ras(image)
    if labels.array.shape != shape:
        raise UnusableVolume(
            f"it has {_sides(labels.array.shape)} voxels and its image {_sides(shape)} (axes towards RAS): bring it "
            f"onto the grid of {image}"
        )
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in shape))])
    apart_mm = float(np.linalg.norm(corners @ (labels.affine - affine).T, axis=1).max())
    if apart_mm > SAME_PLACE * min(spacing_of(affine)):
        raise UnusableVolume(
            f"it lies up to {apart_mm:.3g} mm from its image in space, by their affines: bring it onto the grid of "
            f"{image}"
        )


class LabelledVolume(InMemory):
    """A scaled volume with the class of each voxel, in memory: half precision and one byte a voxel.

    As `Cuboids`, a tissue voxel is one of the foreground: of a class drawn evenly, any of its voxels.
    """

    def __init__(
        self, volume: Float[Tensor, "channel depth height width"], labels: UInt8[Tensor, "depth height width"]
    ) -> None:
        super().__init__(volume.half())
        self.labels = labels
        most = int(labels.max()) + 1
        # How many voxels of each class lie up to each plane: the n-th is then found in one of them.
        self._up_to = torch.stack([torch.bincount(plane.flatten(), minlength=most) for plane in labels]).cumsum(0)
        self.present: list[int] = (1 + self._up_to[-1, 1:].nonzero()[:, 0]).tolist()

    @property
    def volume(self) -> Float[Tensor, "channel depth height width"]:
        """All of it."""
        return self._volume

    def tissue(self, generator: torch.Generator) -> Sequence[int]:
        """Return a voxel of the foreground, any voxel where there is none."""
        if not self.present:
            return [int(torch.randint(side, (), generator=generator)) for side in self.grid]
        label = self.present[int(torch.randint(len(self.present), (), generator=generator))]
        up_to = self._up_to[:, label].contiguous()
        number = int(torch.randint(int(up_to[-1]), (), generator=generator))
        plane = int(torch.searchsorted(up_to, number, right=True))
        before = int(up_to[plane - 1]) if plane else 0
        return [plane, *(self.labels[plane] == label).nonzero()[number - before].tolist()]

    def crop(
        self, view: RandomView, generator: torch.Generator
    ) -> tuple[Cuboid, UInt8[Tensor, "crop_depth crop_height crop_width"]]:
        """Return the part of image and labels that `view` draws, both padded with 0 to its size."""
        start, size = view.draw(self, generator)
        (d, h, w), (depth, height, width) = start, size
        labels = self.labels[None, d : d + depth, h : h + height, w : w + width].half()
        return pad(self.cut(start, size), view.crop_size), pad(labels, view.crop_size)[0].byte()


def _range(value: int | str, name: str) -> tuple[int, int]:
    found = RANGE.fullmatch(str(value).strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= LARGEST_VALUE:
        raise ValueError(
            f"class '{name}': a label is a whole number from 1 or a range such as '1000-2035' (0 is the background), "
            f"got '{value}'"
        )
    return first, last


def _grid_towards_ras(path: Path) -> tuple[Grid, Affine]:
    if is_stored(path):
        stored = StoredVolume(path)
        return stored.grid, stored.affine
    info = read_header(path)
    steps = orientations.io_orientation(info.affine)
    sides = dict(zip(steps[:, 0].astype(int).tolist(), info.shape[:3], strict=True))
    return (sides[0], sides[1], sides[2]), info.affine @ orientations.inv_ornt_aff(steps, info.shape[:3])


def _sides(shape: Sequence[int]) -> str:
    return " × ".join(str(side) for side in shape)
