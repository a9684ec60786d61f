"""What is known of a file of k-space before any of it is read, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Complex64, Float64, Int64
from numpy import ndarray

Layout = Literal["fastmri", "fastmri_singlecoil", "challenge", "mrd", "twix"]
Vector = tuple[float, float, float]
SAME_NORMAL = 1e-4  # 1 − cosine


@dataclass(frozen=True)
class SlicePlace:
    """Where a slice lies in the scanner, in mm and as directions of length 1, along left, posterior and superior.

    Attributes:
        position_mm: its centre.
        readout: where the rows of k-space, the height, lead.
        phase: where the columns, the width, lead.
        normal: where the next slice lies.
    """

    position_mm: Vector
    readout: Vector
    phase: Vector
    normal: Vector


def vector(values: Float64[ndarray, "3"]) -> Vector:
    """Return three numbers as they are kept."""
    x, y, z = values.tolist()
    return x, y, z


def as_they_lie(
    places: tuple[SlicePlace, ...], slice_of: Int64[ndarray, " line"], notes: list[str]
) -> tuple[tuple[SlicePlace, ...], Int64[ndarray, " line"]]:
    """Return the places of slices in the order in which they lie, and the slice of each line in that order.

    Scanners that interleave slices count them otherwise; a note is added to `notes` then. Slices that are in a row
    already, towards either side, stay as they are, and so do those that are turned against each other.
    """
    if not places or any(np.dot(place.normal, places[0].normal) < 1 - SAME_NORMAL for place in places):
        return places, slice_of
    heights = np.array([np.dot(place.position_mm, places[0].normal) for place in places])
    steps = np.diff(heights)
    if (steps >= 0).all() or (steps <= 0).all():
        return places, slice_of
    notes.append("its slices are counted in another order than they lie in: they are taken as they lie")
    order = np.argsort(heights, kind="stable")
    return tuple(places[number] for number in order), np.argsort(order)[slice_of]


@dataclass(frozen=True)
class KspaceInfo:
    """What the metadata of a file say.

    Attributes:
        layout: which format it is.
        num_slices: of the volume.
        num_coils: 1 for a single-coil file.
        size: height, along the read-out, and width, along the phase encoding, of k-space.
        acquisition: the name of contrast or protocol, "" where none is given; free text.
        target: the name of the array with the image to be reconstructed, "" for none.
        target_size: height and width of that, the centre of the image.
        data_range: the largest value of the target, as the file says it; None where it says none.
        sampled: the columns that the file's own mask chooses, None where it has none.
        measured_columns: the first and the one behind the last that the scanner measured; others are filled with 0.
        image_size: height and width of the image as the scanner shows it, the centre; None where nothing says it.
        field_of_view_mm: of that image, height, width and depth.
        places: of each slice; () where nothing says it.
        dwell_time_ratio: time a sample of the noise scan took over one of the image; None where there is no noise scan.
        has_maps: whether it holds sensitivity maps.
        notes: what had to be assumed, or is unusual.
    """

    layout: Layout
    num_slices: int
    num_coils: int
    size: tuple[int, int]
    measured_columns: tuple[int, int]
    acquisition: str = ""
    target: str = ""
    target_size: tuple[int, int] | None = None
    data_range: float | None = None
    sampled: tuple[bool, ...] | None = None
    image_size: tuple[int, int] | None = None
    field_of_view_mm: Vector | None = None
    places: tuple[SlicePlace, ...] = ()
    dwell_time_ratio: float | None = None
    has_maps: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_target(self) -> bool:
        """Whether there is an image to compare with."""
        return bool(self.target)


class KspaceSource(Protocol):
    """Reads one format; raises UnusableVolume, without the path, for what cannot be used."""

    info: KspaceInfo

    def read(self, start: int, stop: int) -> Complex64[ndarray, "slice coil height width"]:
        """Return the k-space of slices `start` to `stop`, without the latter."""
        ...

    def image(self, name: str, index: int) -> ndarray:
        """Return one slice of the array `name` of the file, or of the file of images that belongs to it."""
        ...

    def noise(self) -> Complex64[ndarray, "coil sample"]:
        """Return what the noise scan measured."""
        ...


def as_complex64(values: ndarray) -> Complex64[ndarray, "..."]:
    """Return values in single precision, without a copy where they are."""
    return np.ascontiguousarray(values, dtype=np.complex64)
