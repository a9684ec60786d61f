"""Volumes from NIfTI and MGH files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from voxelwave.data.reading.unreadable import as_unusable
from voxelwave.data.reading.volume import Spacing, Volume, VolumeInfo, resample, towards_ras, without_trailing_ones
from voxelwave.errors import UnusableVolume

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")


def read_header(path: Path) -> VolumeInfo:
    """Read the header alone; raises UnusableVolume where there is none."""
    with as_unusable(path):
        return _info(nibabel.load(path))


def read_volume(
    path: Path, *, channels: int = 3, frame: int | None = None, spacing_mm: Spacing | None = None
) -> Volume:
    """Read [D, H, W] or [D, H, W, channels], towards RAS, resampled (trilinear) where `spacing_mm` is given.

    With `frame` it is that volume of a file of several.

    Raises:
        UnusableVolume: with a short reason, for whatever cannot be read or is not one volume.
    """
    with as_unusable(path):
        image = nibabel.load(path)
        info = _info(image)
        if problem := info.problem(channels, several=frame is not None):
            raise UnusableVolume(problem)
        stored = np.asarray(image.dataobj.get_unscaled())
        stored = stored.reshape(without_trailing_ones(stored.shape))
        if stored.ndim == 5:
            stored = stored[:, :, :, 0]
        if frame is not None and info.frames(channels) > 1:
            stored = stored[..., frame]
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        volume = towards_ras(stored, info.affine, slope=slope, intercept=intercept)
    return volume if spacing_mm is None else resample(volume, spacing_mm)


def _info(image: Any) -> VolumeInfo:
    dtype = image.get_data_dtype()
    kind = "RGB" if dtype.fields else "complex" if dtype.kind == "c" else dtype.name
    affine = np.asarray(image.affine, dtype=np.float64)
    return VolumeInfo(tuple(int(side) for side in image.shape), affine, kind)
