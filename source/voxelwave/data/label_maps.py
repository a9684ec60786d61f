"""Label maps: which class each value stands for, whether they fit an image, and how they come onto another grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Integer, UInt8
from numpy import ndarray

from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.data.reading.volume import Affine, Volume, spacing_of
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import UnusableVolume

WHOLE = 1e-3  # how far from whole numbers labels may be: tools save them with a slope, and 1 comes back as 1.0000153
LARGEST_VALUE = 2**24  # up to here whole numbers are exact in float32
MOST_CLASSES = 254
OTHER = 255
SAME_PLACE = 0.1  # of a voxel: tools round affines
SHOWN_VALUES = 8
DECIMALS = 6  # of a voxel; affines that should agree differ by rounding, and halves are to go one way
ROUNDED = 1e-3  # of a voxel: what rounding adds up to over a side
RANGE = re.compile(r"(\d+)(?:-(\d+))?")
TYPES = (np.uint8, np.int16, np.int32)  # which every reader of NIfTI knows, and the store takes

Labels = UInt8[ndarray, "depth height width"]


class LabelMap(NamedTuple):
    """Whole numbers, axes to right, anterior, superior; `affine` leads from voxels to mm."""

    array: Integer[ndarray, "depth height width"]
    affine: Affine


class Classes:
    """Names of classes and the label values that each stands for; 0 is the background.

    Args:
        values: numbers, and ranges such as "1000-2035" with both ends, by the name of their class.
        others: what a value of no class is: an "error", or "background".

    Raises ValueError for a value that is no label, or that two classes have.
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

        Raises UnusableVolume, which names the values of no class, unless these are background.
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
    labels = as_labels(read_volume(path))
    if np.abs(labels.array).max() > LARGEST_VALUE:
        raise UnusableVolume(f"its values go beyond {LARGEST_VALUE}: number the labels anew")
    return labels


def as_labels(volume: Volume) -> LabelMap:
    """Return the whole numbers that a volume holds; raises UnusableVolume where it holds others, with the reason."""
    array = volume.array
    if array.ndim != 3:
        raise UnusableVolume(f"a label map has three axes, got shape {array.shape}")
    whole = np.rint(array)
    if not np.isfinite(array).all() or np.abs(array - whole).max() > WHOLE:
        raise UnusableVolume("its values are not whole numbers: it is no label map")
    if (highest := np.abs(whole).max()) >= 2.0**31:
        raise UnusableVolume(f"its values go beyond 32 bits, up to {highest:g}: number the labels anew")
    return LabelMap(whole.astype(np.int32), volume.affine)


def onto_grid(
    labels: Integer[ndarray, "depth height width"], affine: Affine, *, shape: Sequence[int], to_affine: Affine
) -> Integer[ndarray, "other_depth other_height other_width"]:
    """Return labels on another grid: each of its voxels gets the nearest label in space, 0 outside.

    Outside is what lies further from all centres of `labels` than `reach` says.
    """
    way = voxel_to_voxel(affine, to_affine)
    if labels.shape == tuple(shape) and np.array_equal(way, np.eye(4)):
        return labels.copy()
    placed = np.zeros(tuple(shape), dtype=labels.dtype)
    rows, columns = np.arange(shape[1])[:, None], np.arange(shape[2])[None]
    bounds = list(zip(way, labels.shape, reach(way), strict=False))
    # Plane by plane, for memory; where axes stay axes, an index is no larger than a row or a column.
    for plane in range(shape[0]):
        nearest, inside = [], np.True_
        for (a, b, c, start), side, far in bounds:
            place = np.asarray(start + a * plane + (b * rows if b else 0) + (c * columns if c else 0))
            inside = inside & (place >= -far) & (place <= side - 1 + far)
            nearest.append(np.clip(np.floor(place + 0.5), 0, side - 1).astype(np.intp))
        placed[plane] = np.where(inside, labels[tuple(nearest)], 0)
    return placed


def reach(way: Float64[ndarray, "4 4"]) -> Float64[ndarray, "3"]:
    """Return by axis how far from the outermost centres of a grid the voxels lie that still belong to it.

    `way` takes voxels of another grid to voxels of this one. Half a voxel of this grid or of the other, whichever is
    larger, as a resampled grid is rounded to whole voxels: its border lies up to that far from the border it came from.
    Both ends belong to it, since half a voxel is where the last plane of an even side lies on a grid twice as fine.
    """
    steps = np.linalg.norm(way[:3, :3], axis=1)
    half: Float64[ndarray, "3"] = np.maximum(steps, 1) / 2 + ROUNDED
    return half


def voxel_to_voxel(affine: Affine, to_affine: Affine) -> Float64[ndarray, "4 4"]:
    """Return the matrix that takes voxels of the grid with `to_affine` to voxels of the grid with `affine`."""
    matrix: Float64[ndarray, "4 4"] = np.round(np.linalg.inv(affine) @ to_affine, DECIMALS) + 0.0
    return matrix


def in_smallest_type(labels: Integer[ndarray, "..."]) -> Integer[ndarray, "..."]:
    """Return labels in the smallest of the types uint8, int16 and int32 that holds them; raises ValueError for none."""
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    for dtype in TYPES:
        if np.iinfo(dtype).min <= lowest and highest <= np.iinfo(dtype).max:
            return labels.astype(dtype)
    raise ValueError(f"labels are whole numbers of 32 bits, got {lowest} to {highest}")


def check_same_grid(labels: LabelMap, image: Path) -> None:
    """Raise UnusableVolume where `labels` do not lie on the voxels of the file `image`."""
    if is_stored(image):
        stored = StoredVolume(image)
        shape, affine = stored.grid, stored.affine
    else:
        try:
            shape, affine = read_header(image).grid_towards_ras()
        except UnusableVolume as error:
            raise UnusableVolume(
                f"its image {image} cannot be compared with it ({error}): label maps belong to NIfTI or MGH files, or "
                "to what `voxelwave prepare` wrote"
            ) from None
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


def _range(value: int | str, name: str) -> tuple[int, int]:
    found = RANGE.fullmatch(str(value).strip())
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= LARGEST_VALUE:
        raise ValueError(
            f"class '{name}': a label is a whole number from 1 or a range such as '1000-2035' (0 is the background), "
            f"got '{value}'"
        )
    return first, last


def _sides(shape: Sequence[int]) -> str:
    return " × ".join(str(side) for side in shape)
