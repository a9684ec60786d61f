"""Lines of a Cartesian read-out in their places of k-space: which were measured, and what of the field is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Complex64, Int64
from numpy import ndarray

from voxelwave.data.kspace.info import as_complex64
from voxelwave.errors import UnusableVolume
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


def without_oversampling(
    kspace: Complex64[ndarray, "slice coil samples width"], height: int
) -> Complex64[ndarray, "slice coil height width"]:
    """Cut the image to the middle `height` along the read-out: oversampling is a larger field of view."""
    samples = kspace.shape[2]
    if height == samples:
        return kspace
    image = _centred(np.fft.ifft, kspace)
    first = samples // 2 - height // 2
    return as_complex64(_centred(np.fft.fft, image[:, :, first : first + height]))


def _centred(transform: Callable[..., ndarray], values: ndarray) -> ndarray:
    """Apply a Fourier transform along the read-out, with the origin of both sides in the middle."""
    shifted = np.fft.ifftshift(values, axes=2)
    return np.fft.fftshift(transform(shifted, axis=2, norm="ortho"), axes=2)
