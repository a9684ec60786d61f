"""Volumes from DICOM series, by the geometry of PS3.3 C.7.6.2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from voxelwave.data.reading.dicom_header import APART, KEYWORDS, Plane, Series, read_planes
from voxelwave.data.reading.dicom_pixels import read_pixels
from voxelwave.data.reading.slices import SAME_PLACE_MM, Stack, heights
from voxelwave.data.reading.unreadable import as_unusable, extra
from voxelwave.data.reading.volume import Volume, VolumeInfo, towards_ras
from voxelwave.errors import UnusableVolume

SAME_STEP_MM = 1e-3  # 0.5 mm over a slice of 512 voxels: what differs by more is not of one volume


def is_dicom(path: Path) -> bool:
    """Tell by its name and its first 132 bytes whether `path` is DICOM; only a .dcm may lack the mark."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        return True
    # A UID as a name ends in a number. A DICOMDIR is an index of other files.
    if not (suffix in ("", ".ima", ".dicom") or suffix[1:].isdigit()) or path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def find_series(files: Sequence[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Group files to volumes by their headers; the second list names what cannot be read, with the reason.

    A volume has one SeriesInstanceUID, size, orientation and spacing. Images at the same positions (echoes, time
    points) are parted into volumes of their own by the tags `APART`, copies of an image left out. A file of several
    frames stands alone. What cannot be a volume is a Series with a `problem`.

    Raises InputError where the extra `dicom` is not installed.
    """
    pydicom, _ = extra("pydicom"), extra("imagecodecs")  # ask for the codecs now, not once all is grouped
    groups: dict[tuple[object, ...], list[list[Plane]]] = {}
    unreadable = []
    for file in files:
        try:
            with as_unusable(file):
                dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(KEYWORDS))
                planes = list(read_planes(file, dataset))
        except UnusableVolume as unusable:
            unreadable.append((file, str(unusable)))
            continue
        for plane in planes:
            series = plane.series
            key = (series.uid, series.shape, series.problem, file if len(planes) > 1 else None)
            alike = groups.setdefault(key, [])
            of_same_steps = (group for group in alike if _near(group[0].series, series))
            if (group := next(of_same_steps, None)) is not None:
                group.append(plane)
            else:
                alike.append([plane])
    found = [_series(part, planes) for alike in groups.values() for group in alike for part, planes in _parts(group)]
    return _with_unique_uids(found), unreadable


def read_series_header(series: Series) -> VolumeInfo:
    """Return shape and affine as `read_series` finds them; opens no file.

    Raises UnusableVolume with a short reason, where the series is not one volume.
    """
    if series.problem is not None:
        raise UnusableVolume(series.problem)
    stack = _stack(series)
    return VolumeInfo((*series.shape, stack.number), stack.affine, series.dtype)


def read_series(series: Series) -> Volume:
    """Read [D, H, W] towards RAS; each slice has its own slope and intercept, and gaps are made even.

    Raises UnusableVolume with a short reason, also where the pixels of a file cannot be read.
    """
    info, stack = read_series_header(series), _stack(series)
    columns, rows = series.shape
    slices = np.empty((len(series.slices), rows, columns), np.float32)
    frames: tuple[Path, Shaped[ndarray, "frame row column"]] | None = None
    for values, piece in zip(slices, series.slices, strict=True):
        try:
            with as_unusable(piece.file):
                if frames is None or frames[0] != piece.file:
                    frames = piece.file, read_pixels(piece.file)
                values[:] = frames[1][piece.frame]
        except UnusableVolume as unusable:
            raise type(unusable)(f"{piece.file.name}: {unusable}") from unusable
        if (piece.slope, piece.intercept) != (1, 0):
            values *= np.float32(piece.slope)
            values += np.float32(piece.intercept)
    return towards_ras(stack.at_even_gaps(slices).transpose(2, 1, 0), info.affine)._replace(source=info)


def _parts(planes: list[Plane], tags: Sequence[str] = APART) -> list[tuple[str, list[Plane]]]:
    """Part images at the same positions by the first tag that leaves at least half of the positions to each part."""
    planes = list({(plane.instance, plane.piece.position_mm): plane for plane in planes}.values())
    if planes[0].series.problem is not None or (places := _places(planes)) == len(planes):
        return [("", planes)]
    for index, tag in enumerate(tags):
        parts: dict[str, list[Plane]] = {}
        for plane in planes:
            parts.setdefault(plane.apart.get(tag, ""), []).append(plane)
        if len(parts) > 1 and all(2 * _places(part) >= places for part in parts.values()):
            return [
                (", ".join(filter(None, (f"{tag} {value}".strip(), more))), rest)
                for value, part in parts.items()
                for more, rest in _parts(part, tags[index + 1 :])
            ]
    return [("", planes)]


def _places(planes: list[Plane]) -> int:
    return 1 + int((np.diff(np.sort(_heights(planes))) >= SAME_PLACE_MM).sum())


def _heights(planes: list[Plane]) -> ndarray:
    return heights(np.array([plane.piece.position_mm for plane in planes]), np.array(planes[0].series.steps_mm))


def _series(part: str, planes: list[Plane]) -> Series:
    series = replace(planes[0].series, part=part)
    if series.problem is not None:
        return replace(series, slices=tuple(plane.piece for plane in planes))
    order = np.argsort(_heights(planes), kind="stable")
    series = replace(series, slices=tuple(planes[index].piece for index in order))
    stack = _stack(series)
    if problem := stack.problem():
        return replace(series, problem=problem)
    # By the slices as stored: interpolation must not make a volume of too few of them.
    stored = VolumeInfo((*series.shape, len(series.slices)), stack.affine, series.dtype)
    return replace(series, problem=stored.problem(), note=stack.note())


def _stack(series: Series) -> Stack:
    return Stack(np.array([piece.position_mm for piece in series.slices]), np.array(series.steps_mm))


def _near(one: Series, other: Series) -> bool:
    return bool(np.abs(np.subtract(one.steps_mm, other.steps_mm)).max() < SAME_STEP_MM)


def _with_unique_uids(found: list[Series]) -> list[Series]:
    several = Counter(series.uid for series in found)
    seen: Counter[str] = Counter()
    unique = []
    for series in found:
        seen[series.uid] += 1
        unique.append(replace(series, uid=f"{series.uid}-{seen[series.uid]}") if several[series.uid] > 1 else series)
    return unique
