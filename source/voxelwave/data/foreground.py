"""The part of a scan that is not air."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool
from nibabel.affines import voxel_sizes
from numpy import ndarray

from voxelwave.data.modalities import Bounds, Modality
from voxelwave.data.reading.volume import Volume, three
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import UnusableVolume

CroppedAt = tuple[float, float, float] | Literal["native"]
MARGIN_MM = 5.0
PLANE_SHARE = 0.002  # of a plane must be foreground for the box to reach it: single bright voxels do not count
STRIDE = 2


def foreground_box(shown: Bool[ndarray, "..."], volume: Volume) -> tuple[slice, ...]:
    """Return the box of `volume` around the foreground, which is given at every second voxel, with a margin."""
    box = []
    for axis, (side, spacing) in enumerate(zip(volume.array.shape[:3], volume.spacing_mm, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(shown.mean(axis=others) > PLANE_SHARE) * STRIDE
        margin = math.ceil(MARGIN_MM / spacing) + STRIDE
        first, last = (planes[0], planes[-1]) if planes.size else (0, side)
        box.append(slice(max(0, int(first) - margin), min(side, int(last) + margin + 1)))
    return tuple(box)


def cropped(volume: Volume, box: tuple[slice, ...]) -> Volume:
    """Return the part of a volume in a box, at its place in mm."""
    shift = np.eye(4)
    shift[:3, 3] = [side.start for side in box]
    return Volume(volume.array[box], volume.affine @ shift, volume.source)


def to_foreground(volume: Volume, modality: Modality, bounds: Bounds) -> Volume:
    """Return a volume without the air around it, but for a margin, as `voxelwave prepare` stores it."""
    shown = modality.foreground(volume.array[::STRIDE, ::STRIDE, ::STRIDE], bounds)
    return cropped(volume, foreground_box(shown, volume))


def cropped_at(paths: Iterable[Path]) -> CroppedAt | None:
    """Return the spacing at which those of the volumes were cropped that are stored so, in mm; None where none is.

    "native" where they do not have one spacing. What cannot be read counts as not cropped: reading says why.
    """
    found = set[tuple[float, ...]]()
    for path in filter(is_stored, paths):
        with suppress(UnusableVolume):
            if was_cropped(stored := StoredVolume(path)):
                found.add(tuple(voxel_sizes(stored.affine).round(3).tolist()))
    return three(found.pop()) if len(found) == 1 else "native" if found else None


def was_cropped(stored: StoredVolume) -> bool:
    """Tell whether a stored volume has lost the air around it: where it does not say so, by what its file has more."""
    if stored.info.cropped is not None:
        return stored.info.cropped
    own, whole = voxel_sizes(stored.affine), voxel_sizes(stored.source.affine)
    lost = np.array(stored.source.grid) * whole - np.array(stored.grid) * own
    return bool((lost > 2 * np.maximum(own, whole)).any())  # resampling changes an extent by up to a voxel
