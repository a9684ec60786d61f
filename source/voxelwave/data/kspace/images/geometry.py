"""Where the pixels of a reconstructed volume lie, from what the file of its k-space says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from voxelwave.data.kspace.info import KspaceInfo, Vector
from voxelwave.data.reading.slices import EVEN_WITHIN_MM, LPS_TO_RAS
from voxelwave.errors import InputError

UNKNOWN_MM = 1.0
SAME_DIRECTION = 1e-3  # cosine; headers round directions to about 1e-5


class ImageSize(NamedTuple):
    """The shape of a volume."""

    slices: int
    rows: int
    columns: int


@dataclass(frozen=True)
class PlacedSlices:
    """The pixels of each slice, in mm along left, posterior and superior.

    Attributes:
        first_mm: the centre of the first pixel of each slice.
        row_step_mm: from a row to the next, of each slice.
        column_step_mm: from a column to the next, of each slice.
        thickness_mm: of a slice.
        is_known: whether a file said where they lie; else they lie one above the other from the origin on.
        note: what had to be assumed, "" for nothing.
    """

    first_mm: Float64[ndarray, "slice 3"]
    row_step_mm: Float64[ndarray, "slice 3"]
    column_step_mm: Float64[ndarray, "slice 3"]
    thickness_mm: float
    is_known: bool
    note: str

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """The distance of rows and that of columns."""
        return float(np.linalg.norm(self.row_step_mm[0])), float(np.linalg.norm(self.column_step_mm[0]))

    def order(self) -> list[int]:
        """Return the numbers of the slices in the order in which they lie."""
        normal = np.cross(self.column_step_mm[0], self.row_step_mm[0])
        heights = self.first_mm @ normal
        ascending = np.argsort(heights, kind="stable")
        return [int(number) for number in (ascending if heights[-1] >= heights[0] else ascending[::-1])]

    def affine(self) -> Float64[ndarray, "4 4"]:
        """Return the way from (row, column, slice in `order`) to mm, RAS+.

        Raises InputError for slices that are no even stack, which one affine cannot place.
        """
        order = self.order()
        first = self.first_mm[order]
        steps = np.concatenate([self.row_step_mm, self.column_step_mm], 1)
        turned = np.abs(steps - steps[0]).max() > SAME_DIRECTION * np.abs(steps).max()
        even = np.linspace(first[0], first[-1], len(first))
        if turned or np.linalg.norm(first - even, axis=1).max() > EVEN_WITHIN_MM:
            raise InputError(
                "its slices are turned against each other, or unevenly spaced, which no NIfTI file can say: write DICOM"
            )
        normal = np.cross(self.row_step_mm[0], self.column_step_mm[0])
        single = normal / np.linalg.norm(normal) * self.thickness_mm
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = self.row_step_mm[0], self.column_step_mm[0]
        affine[:3, 2] = (first[-1] - first[0]) / (len(first) - 1) if len(first) > 1 else single
        affine[:3, 3] = first[0]
        return LPS_TO_RAS @ affine


def place_slices(info: KspaceInfo, size: ImageSize) -> PlacedSlices:
    """Return where the pixels of a volume lie that was reconstructed from the k-space of `info`.

    The volume is the centre of the whole image, whose origin, the place that the file says of a slice, is at
    `(height // 2, width // 2)`, as in `physics/fourier.py`. Rows lead along the read-out, columns along the phase
    encoding. A pixel has the size that the header says; where it says none, 1 mm.
    Raises ValueError for a volume of another number of slices, or that is larger than the whole image.
    """
    if size.slices != info.num_slices or size.rows > info.size[0] or size.columns > info.size[1]:
        raise ValueError(f"a volume of {tuple(size)} is not of a k-space of {(info.num_slices, *info.size)}")
    notes, extent, whole = [], info.field_of_view_mm, info.image_size
    if extent is None or whole is None:
        notes.append(f"nothing says how large its pixels are: {UNKNOWN_MM:g} mm is taken")
        spacing, thickness = (UNKNOWN_MM, UNKNOWN_MM), UNKNOWN_MM
    else:
        spacing, thickness = (extent[0] / whole[0], extent[1] / whole[1]), extent[2]
    if info.places:
        positions = np.array([place.position_mm for place in info.places], dtype=np.float64)
        along_rows = np.array([_unit(place.readout) for place in info.places])
        along_columns = np.array([_unit(place.phase) for place in info.places])
    else:
        notes.append("nothing says where its slices lie, nor which side is left")
        positions = np.zeros((size.slices, 3))
        positions[:, 2] = thickness * np.arange(size.slices)
        along_rows, along_columns = (np.tile(axis, (size.slices, 1)) for axis in np.eye(3)[[1, 0]])
    row_step, column_step = spacing[0] * along_rows, spacing[1] * along_columns
    row, column = (
        side // 2 - (side - shown) // 2 for side, shown in zip(info.size, (size.rows, size.columns), strict=True)
    )
    first = positions - row * row_step - column * column_step
    return PlacedSlices(first, row_step, column_step, thickness, bool(info.places), "; ".join(notes))


def _unit(vector: Vector) -> Float64[ndarray, "3"]:
    values = np.array(vector, dtype=np.float64)
    return np.asarray(values / np.linalg.norm(values))
