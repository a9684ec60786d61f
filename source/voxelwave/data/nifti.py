"""Volumes from NIfTI and MGH files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from voxelwave.data.labels import label_map_reason
from voxelwave.data.modalities import Modality, UnusableVolume, without_trailing_ones
from voxelwave.data.unreadable import as_unusable
from voxelwave.data.volume import Spacing, Volume, VolumeInfo, resample, towards_ras

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


def read_channels(
    path: Path, modality: Modality, *, spacing_mm: Spacing | None = None
) -> Float32[ndarray, "channel depth height width"]:
    """Read a file as `modality` wants it; raises UnusableVolume, also for a label map."""
    volume = read_volume(path, channels=modality.channels)
    # Before resampling, which would blur the whole numbers of labels.
    if reason := label_map_reason(path, volume.array):
        raise UnusableVolume(reason)
    return modality((volume if spacing_mm is None else resample(volume, spacing_mm)).array)


def _info(image: Any) -> VolumeInfo:
    dtype = image.get_data_dtype()
    kind = "RGB" if dtype.fields else "complex" if dtype.kind == "c" else dtype.name
    affine = np.asarray(image.affine, dtype=np.float64)
    return VolumeInfo(tuple(int(side) for side in image.shape), affine, kind)
