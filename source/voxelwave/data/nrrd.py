"""Volumes from NRRD files, with attached or detached data (https://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from voxelwave.data.modalities import UnusableVolume, without_trailing_ones
from voxelwave.data.unreadable import as_unusable
from voxelwave.data.volume import Volume, VolumeInfo, towards_ras
from voxelwave.errors import InputError

NRRD_SUFFIXES = (".nrrd", ".nhdr")

TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
UNNAMED_SPACE = (-1, -1, 1)  # ITK, which most tools read NRRD with, takes any other space and none for LPS
ALONG_SPACE = ("domain", "space", "???", "none")
COLOURS = ("rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color")
# The names of C, in which "float" is not the one of NumPy.
TYPES = {"char": "int8", "short": "int16", "int": "int32", "longlong": "int64", "float": "float32", "double": "float64"}


class _Layout(NamedTuple):
    info: VolumeInfo
    axes: tuple[int, ...]  # of the file: the three of space first


def read_nrrd_header(path: Path) -> VolumeInfo:
    """Read the header alone, the axes of space first; raises UnusableVolume where there is none."""
    nrrd = _nrrd()
    with as_unusable(path), _silent():
        return _layout(nrrd.read_header(str(path))).info


def read_nrrd(path: Path, *, channels: int = 3, frame: int | None = None) -> Volume:
    """Read [D, H, W] or [D, H, W, channels] towards RAS; with `frame` that volume of a file of several.

    Raises:
        UnusableVolume: with a short reason, for whatever cannot be read or is not one volume.
        InputError: the extra `dicom` is not installed.
    """
    nrrd = _nrrd()
    with as_unusable(path), _silent():
        info, axes = _layout(nrrd.read_header(str(path)))
        if problem := info.problem(channels, several=frame is not None):
            raise UnusableVolume(problem)
        try:
            stored, _ = nrrd.read(str(path))
        except FileNotFoundError as missing:
            raise UnusableVolume("the file with its data is missing") from missing
        stored = stored.transpose(axes)
        stored = stored.reshape(without_trailing_ones(stored.shape))
        if stored.ndim == 5:
            stored = stored[:, :, :, 0]
        if frame is not None and info.frames(channels) > 1:
            stored = stored[..., frame]
        return towards_ras(stored, info.affine)


def _layout(header: dict[str, Any]) -> _Layout:
    sizes = [int(size) for size in header["sizes"]]
    kinds = [kind.lower() for kind in header.get("kinds", ["???"] * len(sizes))]
    directions, origin = header.get("space directions"), header.get("space origin")
    if directions is None:
        along_space = [axis for axis, kind in enumerate(kinds) if kind in ALONG_SPACE]
        spacings = np.asarray(header.get("spacings", np.ones(len(sizes))), dtype=np.float64)
        steps_mm = np.diag(np.nan_to_num(spacings, nan=1.0)[along_space])[:3, :3]
    else:
        along_space = [axis for axis, direction in enumerate(directions) if np.isfinite(direction).all()]
        steps_mm = np.asarray(directions, dtype=np.float64)[along_space][:3]
    axes = (*along_space[:3], *(axis for axis in range(len(sizes)) if axis not in along_space[:3]))
    affine = np.eye(4)
    if len(along_space) >= 3:
        if steps_mm.shape != (3, 3):
            raise UnusableVolume(f"its space has {steps_mm.shape[1]} dimensions, three are needed")
        affine[:3, :3] = steps_mm.T
        affine[:3, 3] = np.zeros(3) if origin is None else np.nan_to_num(origin)
    signs = TO_RAS.get(str(header.get("space", "")).lower(), UNNAMED_SPACE)
    affine = np.diag([*signs, 1.0]) @ affine
    shape = tuple(sizes[axis] for axis in axes)
    return _Layout(VolumeInfo(shape, affine, _voxel_type(str(header["type"]), kinds)), axes)


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


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _nrrd() -> Any:
    try:
        return import_module("nrrd")
    except ImportError as missing:
        raise InputError("reading NRRD needs pynrrd: pip install 'voxelwave[dicom]'") from missing
