"""Volumes from NIfTI and MGH files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy import ndarray

from voxelwave.data.reading.unreadable import as_unusable
from voxelwave.data.reading.volume import Spacing, Volume, VolumeInfo, one_of, resample, towards_ras
from voxelwave.errors import DamagedVolume, UnusableVolume

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
# A NIfTI header has two affines, and which of them is believed differs from one viewer to the other.
PLACEMENT = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "pixdim", "xyzt_units"),
)


MM = {1: 1000.0, 3: 0.001}  # of metre and micron; the others are mm, or not said


def read_header(path: Path) -> VolumeInfo:
    """Read the header alone; raises UnusableVolume where there is none."""
    with as_unusable(path):
        return _info(nibabel.load(path))


def read_volume(
    path: Path, *, channels: int = 3, frame: int | None = None, spacing_mm: Spacing | None = None
) -> Volume:
    """Read [D, H, W] or [D, H, W, channels], towards RAS, resampled (trilinear) where `spacing_mm` is given.

    `frame` is the number of the volume in a file of several.

    Raises UnusableVolume with a short reason, for whatever cannot be read or is not one volume.
    """
    with as_unusable(path):
        image = nibabel.load(path)
        info = _info(image)
        if problem := info.problem(channels, several=frame is not None):
            raise UnusableVolume(problem)
        stored = one_of(np.asarray(image.dataobj.get_unscaled()), info, channels=channels, frame=frame)
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        volume = towards_ras(stored, info.affine, slope=slope, intercept=intercept)._replace(source=info)
    return volume if spacing_mm is None else resample(volume, spacing_mm)


def _info(image: Any) -> VolumeInfo:
    if isinstance(image, nibabel.Nifti1Image) and (start := int(image.dataobj.offset)) < int(
        image.header["sizeof_hdr"]
    ):
        raise DamagedVolume(f"its header says that the voxels begin at byte {start}, within the header: write it anew")
    dtype = image.get_data_dtype()
    kind = "RGB" if dtype.fields else "complex" if dtype.kind == "c" else dtype.name
    affine = np.asarray(_affine(image), dtype=np.float64)
    names = PLACEMENT if isinstance(image, nibabel.Nifti1Image) else ()
    placement = {name: image.header[name].copy() for name in names}
    return VolumeInfo(tuple(int(side) for side in image.shape), affine, kind, placement)


def _affine(image: Any) -> ndarray:
    """Return the way from voxels to mm: of an sform that leads nowhere the qform is taken, as ITK does."""
    affine = image.affine
    if not isinstance(image, nibabel.Nifti1Image):
        return np.asarray(affine)
    if np.linalg.matrix_rank(affine[:3, :3]) < 3 and (other := image.get_qform(coded=True)[0]) is not None:
        affine = other
    scale = np.diag([*[MM.get(int(image.header["xyzt_units"]) & 7, 1.0)] * 3, 1.0])
    return np.asarray(scale @ affine)
