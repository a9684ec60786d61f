"""Volumes from NRRD files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from voxelwave.data.modalities import UnusableVolume
from voxelwave.data.unreadable import as_unusable
from voxelwave.data.volume import Affine, Volume, VolumeInfo, towards_ras
from voxelwave.errors import InputError

NRRD_SUFFIXES = (".nrrd",)

# What brings millimetres of a space to RAS+.
SPACES = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
}


def read_nrrd_header(path: Path) -> VolumeInfo:
    """Read shape, affine and type.

    Raises:
        UnusableVolume: with a short reason.
        InputError: the extra `dicom` is not installed.
    """
    nrrd = _pynrrd()
    with as_unusable(path):
        return _info(nrrd.read_header(str(path)))


def read_nrrd(path: Path) -> Volume:
    """Read [D, H, W] or [D, H, W, 3], axes towards RAS.

    Raises:
        UnusableVolume: with a short reason.
        InputError: the extra `dicom` is not installed.
    """
    nrrd = _pynrrd()
    with as_unusable(path):
        array, header = nrrd.read(str(path))
        info = _info(header)
        if problem := info.problem():
            raise UnusableVolume(problem)
        if _spatial(header) == (1, 2, 3):  # colours or windows come first in the file
            array = np.moveaxis(array, 0, -1)
        return towards_ras(array, info.affine)


def _info(header: Any) -> VolumeInfo:
    sizes, spatial = [int(side) for side in header["sizes"]], _spatial(header)
    shape = [sizes[axis] for axis in spatial] + [side for axis, side in enumerate(sizes) if axis not in spatial]
    dtype = str(header["type"]).replace("unsigned ", "u").replace("signed ", "")
    return VolumeInfo(tuple(shape), _affine(header), dtype)


def _spatial(header: Any) -> tuple[int, ...]:
    """Return the axes that lead somewhere: the first three, or the last three of four."""
    return tuple(int(axis) for axis in np.flatnonzero(~np.isnan(_directions(header)).any(axis=1)))


def _directions(header: Any) -> Float64[ndarray, "axis 3"]:
    directions = header.get("space directions")
    if directions is None:
        raise UnusableVolume("its header does not say where the axes lead (no 'space directions')")
    rows = [np.full(3, np.nan) if row is None else np.asarray(row, dtype=np.float64) for row in directions]
    if any(row.shape != (3,) for row in rows) or sum(not np.isnan(row).any() for row in rows) != 3:
        raise UnusableVolume("its header does not give three axes of space")
    return np.stack(rows)


def _affine(header: Any) -> Affine:
    space = str(header.get("space", "none")).lower().removesuffix("-time")
    if space not in SPACES:
        raise UnusableVolume(f"its space '{space}' does not say where left and right are")
    affine = np.eye(4)
    affine[:3, :3] = _directions(header)[list(_spatial(header))].T
    affine[:3, 3] = np.nan_to_num(np.asarray(header.get("space origin", np.zeros(3)), dtype=np.float64))
    return np.diag([*SPACES[space], 1.0]) @ affine


def _pynrrd() -> Any:
    try:
        return import_module("nrrd")
    except ImportError as missing:
        raise InputError("reading NRRD needs pynrrd: pip install 'voxelwave[dicom]'") from missing
