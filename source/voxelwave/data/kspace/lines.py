"""Lines of a Cartesian read-out in their places of k-space: which were measured, and what they make of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Int64
from numpy import ndarray

from voxelwave.errors import UnusableVolume
from voxelwave.physics.fourier import crop_readout
from voxelwave.physics.sampled_lines import num_center_lines


class MeasuredColumns(NamedTuple):
    """Columns that every slice has; the first that was measured and the one behind the last; what is unusual."""

    sampled: tuple[bool, ...]
    measured: tuple[int, int]
    notes: tuple[str, ...]


def measured_columns(
    slice_of: Int64[ndarray, " line"], column: Int64[ndarray, " line"], *, num_slices: int, width: int
) -> MeasuredColumns:
    """Return what lines of such slices and columns make of a k-space of `width` columns.

    Raises UnusableVolume where slices have no column in common, or none at the centre.
    """
    notes = list[str]()
    # 1. Columns that every slice has.
    present = np.zeros((num_slices, width), dtype=bool)
    present[slice_of, column] = True
    sampled = np.asarray(present.all(0))
    if (present != sampled).any():
        notes.append("slices differ in the lines that were measured: the mask has those of all slices")
    if not sampled.any():
        raise UnusableVolume("its slices have no line in common")
    check_centre(sampled)
    # 2. Which side is cut off: partial Fourier, or a resolution below that of the image.
    columns = np.flatnonzero(sampled)
    first, last, gap = int(columns[0]), int(columns[-1]), int(np.diff(columns).max(initial=1))
    if abs((width // 2 - first) - (last - (width - 1) // 2)) > gap:
        notes.append(f"partial Fourier: columns {first} to {last} of {width} were measured, the others are 0")
    return MeasuredColumns(tuple(sampled.tolist()), (first, last + 1), tuple(notes))


def check_centre(sampled: Bool[ndarray, " width"]) -> None:
    """Raise UnusableVolume where the columns that are sampled leave out the centre, which all maps are made of."""
    if num_center_lines(torch.from_numpy(sampled)):
        return
    origin, columns = len(sampled) // 2, np.flatnonzero(sampled)
    raise UnusableVolume(
        f"its mask has no calibration centre: columns {origin - 1} and {origin} are not both sampled "
        f"(the nearest is {columns[np.abs(columns - origin).argmin()]})"
    )


def put_in_places(
    lines: Iterable[tuple[int, int, Complex64[ndarray, "coil sample"]]],
    encoded: tuple[int, int, int, int],
    *,
    first: int,
    height: int,
) -> Complex64[ndarray, "slice coil height width"]:
    """Return the k-space of lines, each with its slice and its column; lines of one place, averages, are averaged.

    The image is cut to the middle `height` along the read-out: oversampling is a larger field of view.

    Args:
        encoded: slices, coils, samples and columns; what was not measured is 0.
        first: the sample at which the lines begin.
    """
    whole = np.zeros(encoded, dtype=np.complex64)
    counts = np.zeros((encoded[0], encoded[3]), dtype=np.int64)
    for place, column, line in lines:
        whole[place, :, first : first + line.shape[1], column] += line
        counts[place, column] += 1
    whole /= np.maximum(counts, 1)[:, None, None, :]
    if height == encoded[2]:
        return whole
    return crop_readout(torch.from_numpy(whole), height, first=encoded[2] // 2 - height // 2).numpy()


def check_noise(coils: Collection[int], num_coils: int) -> None:
    """Raise UnusableVolume unless there are noise scans, by their numbers of coils, and of the coils of the image."""
    if not len(coils):
        raise UnusableVolume("holds no noise scan")
    if set(coils) != {num_coils}:
        raise UnusableVolume(f"its noise scan is not of the {num_coils} coils of its image")


def dwell_time_ratio(of_noise: float, of_image: float, notes: list[str]) -> float:
    """Return how much longer a sample of the noise scan took than one of the image; 1 and a note where none says."""
    if 0 < of_noise < math.inf and 0 < of_image < math.inf:
        return of_noise / of_image
    notes.append("the time that a sample took is not given: that of noise and image are taken as the same")
    return 1.0
