"""Volumes from NRRD files, with attached or detached data (https://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from voxelwave.data.reading.unreadable import as_unusable, extra
from voxelwave.data.reading.volume import Volume, VolumeInfo, one_of, towards_ras
from voxelwave.errors import UnusableVolume

NRRD_SUFFIXES = (".nrrd", ".nhdr")

# What brings millimetres of a space to RAS+.
SPACES = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
}
COLOURS = ("rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color")
# The names of C, in which "float" is not the one of NumPy.
TYPES = {"char": "int8", "short": "int16", "int": "int32", "longlong": "int64", "float": "float32", "double": "float64"}


class _Layout(NamedTuple):
    info: VolumeInfo
    axes: tuple[int, ...]  # of the file: the three of space first


def read_nrrd_header(path: Path) -> VolumeInfo:
    """Read the header alone, the axes of space first; raises UnusableVolume where there is none."""
    nrrd = extra("nrrd", package="pynrrd", kind="NRRD")
    with as_unusable(path):
        return _layout(nrrd.read_header(str(path))).info


def read_nrrd(path: Path, *, channels: int = 3, frame: int | None = None) -> Volume:
    """Read [D, H, W] or [D, H, W, channels] towards RAS; `frame` is the number of the volume in a file of several.

    Raises UnusableVolume for whatever cannot be read or is not one volume, InputError without the extra `dicom`.
    """
    nrrd = extra("nrrd", package="pynrrd", kind="NRRD")
    with as_unusable(path):
        header = nrrd.read_header(str(path))
        info, axes = _layout(header)
        if problem := info.problem(channels, several=frame is not None):
            raise UnusableVolume(problem)
        detached = header.get("data file", header.get("datafile"))
        # Path takes "./" away, with which Teem itself writes the name.
        if detached and Path(str(detached)).name != str(Path(str(detached))):
            raise UnusableVolume(f"its data is said to lie elsewhere, in {detached}: put it beside its header")
        try:
            stored, _ = nrrd.read(str(path))
        except FileNotFoundError as missing:
            raise UnusableVolume("the file with its data is missing") from missing
        stored = one_of(stored.transpose(axes), info, channels=channels, frame=frame)
        return towards_ras(stored, info.affine)._replace(source=info)


def _layout(header: dict[str, Any]) -> _Layout:
    sizes = [int(size) for size in header["sizes"]]
    kinds = [kind.lower() for kind in header.get("kinds", ())]
    space, directions = str(header.get("space", "none")).lower().removesuffix("-time"), header.get("space directions")
    if directions is None:
        raise UnusableVolume("its header does not say where the axes lead (no 'space directions')")
    rows = [np.full(3, np.nan) if row is None else np.asarray(row, dtype=np.float64) for row in directions]
    spatial = [axis for axis, row in enumerate(rows) if np.isfinite(row).all()]
    if any(row.shape != (3,) for row in rows) or len(spatial) != 3:
        raise UnusableVolume("its header does not give three axes of space")
    if space not in SPACES:
        raise UnusableVolume(f"its space '{space}' does not say where left and right are")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([rows[axis] for axis in spatial]).T
    affine[:3, 3] = np.nan_to_num(np.asarray(header.get("space origin", np.zeros(3)), dtype=np.float64))
    affine = np.diag([*SPACES[space], 1.0]) @ affine
    axes = (*spatial, *(axis for axis in range(len(sizes)) if axis not in spatial))
    return _Layout(
        VolumeInfo(tuple(sizes[axis] for axis in axes), affine, _voxel_type(str(header["type"]), kinds)), axes
    )


def _voxel_type(name: str, kinds: list[str]) -> str:
    if any(kind in COLOURS for kind in kinds):
        return "RGB"
    if "complex" in kinds:
        return "complex"
    plain = (
        name.lower()
        .removeprefix("signed ")
        .removesuffix("_t")
        .replace("unsigned ", "u")
        .replace("long long", "longlong")
    )
    sign = "u" if plain.startswith("u") else ""
    return sign + TYPES.get(plain.removeprefix("u"), plain.removeprefix("u"))
