"""Volumes from DICOM series, by the geometry of PS3.3 C.7.6.2."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from voxelwave.data.reading.dicom_header import APART, KEYWORDS, Plane, Series, Slice, read_planes
from voxelwave.data.reading.dicom_pixels import check_inflated_size, read_pixels
from voxelwave.data.reading.slices import SAME_PLACE_MM, Stack, heights
from voxelwave.data.reading.unreadable import as_unusable, extra
from voxelwave.data.reading.volume import Volume, VolumeInfo, towards_ras
from voxelwave.errors import UnusableVolume
from voxelwave.ops.seeding import key_to_seed

AIR_HU = -1024.0
LONGEST_FIRST = 128  # bytes of the first element of a data set, such as its group length or character set
TOKEN = 8  # hex digits
TOKENS = re.compile(rf"(-[0-9a-f]{{{TOKEN}}})+$")
SAME_STEP_MM = 1e-3  # 0.5 mm over a slice of 512 voxels: what differs by more is not of one volume
Headers = list[list[Plane] | str]


def is_dicom(path: Path) -> bool:
    """Tell by its name and its first 132 bytes whether `path` is DICOM; only a .dcm need not look like it."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        return True
    # A UID as a name ends in a number. A DICOMDIR is an index of other files.
    if not (suffix in ("", ".ima", ".dicom") or suffix[1:].isdigit()) or path.name.upper() == "DICOMDIR":
        return False
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or _begins_with_an_element(start)


def _begins_with_an_element(start: bytes) -> bool:
    """Tell whether a file without preamble begins as a data set does: in group 8 or 2, with a short first element."""
    if len(start) < 132 or start[:2] not in (b"\x08\x00", b"\x02\x00"):
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") <= LONGEST_FIRST


def read_headers(files: Sequence[Path]) -> Headers:
    """Return for each file its images, or the reason why it cannot be read.

    Raises InputError where the extra `dicom` is not installed.
    """
    pydicom, headers = extra("pydicom"), list[list[Plane] | str]()
    for file in files:
        try:
            with as_unusable(file):
                check_inflated_size(file)
                dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(KEYWORDS))
                headers.append(list(read_planes(file, dataset)))
        except UnusableVolume as unusable:
            headers.append(str(unusable))
    return headers


def find_series(
    files: Sequence[Path], *, read: Callable[[Sequence[Path]], Headers] = read_headers
) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Group files to volumes by their headers; the second list names what cannot be read, with the reason.

    A volume has one patient, study, SeriesInstanceUID, size, orientation and spacing. Images that are no even stack
    together, but by folder or by one of the tags `APART` (echoes, time points, passes) are several, are parted into
    these volumes; copies of an image are left out. A file of several frames stands alone. What cannot be a volume is a
    Series with a `problem`. `read` may be what does as `read_headers` does, in several processes.

    Raises InputError where the extra `dicom` is not installed.
    """
    extra("pydicom"), extra("imagecodecs")  # ask for the codecs now, not once all is grouped
    groups: dict[tuple[object, ...], list[list[Plane]]] = {}
    unreadable = []
    for file, planes in zip(files, read(files), strict=True):
        if isinstance(planes, str):
            unreadable.append((file, planes))
            continue
        for plane in planes:
            series = plane.series
            alone = file if len(planes) > 1 else None
            key = (series.uid, series.patient, series.study, series.shape, series.problem, alone)
            alike = groups.setdefault(key, [])
            of_same_steps = (group for group in alike if _near(group[0].series, series))
            if (group := next(of_same_steps, None)) is not None:
                group.append(plane)
            else:
                alike.append([plane])
    found = [
        _series(part, planes)
        for alike in groups.values()
        for group in alike
        for part, planes in _parts(_without_copied_files(group))
    ]
    return _with_unique_uids(found), unreadable


def read_series_header(series: Series) -> VolumeInfo:
    """Return shape and affine as `read_series` finds them; opens no file.

    Raises UnusableVolume with a short reason, where the series is not one volume.
    """
    if series.problem is not None:
        raise UnusableVolume(series.problem)
    stack = _stack(series)
    return VolumeInfo((*series.shape, stack.number), stack.affine, series.dtype, note=series.note)


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
        padded = np.zeros(values.shape, bool) if piece.padding is None else _within(values, piece.padding)
        if piece.inverted is not None:
            np.subtract(piece.inverted, values, out=values)
        if (piece.slope, piece.intercept) != (1, 0):
            values *= np.float32(piece.slope)
            values += np.float32(piece.intercept)
        values[padded] = np.nan
    # Where nothing was measured is air.
    np.nan_to_num(slices, copy=False, nan=AIR_HU if series.modality == "CT" else float(np.nanmin(slices)))
    return towards_ras(stack.at_even_gaps(slices).transpose(2, 1, 0), info.affine)._replace(source=info)


def _parts(planes: list[Plane], marks: Sequence[str] = ("", *APART)) -> list[tuple[str, list[Plane]]]:
    """Part images into volumes, each with the words that tell it apart; `marks` are the folder ("") and tags.

    By the first mark whose parts are even stacks, where they lie side by side and the whole is no even stack; else, of
    images at the same positions, by the first that leaves at least half of the positions to each part.
    """
    if planes[0].series.problem is not None or len(planes) < 2:
        return [("", planes)]
    whole = _stack_of(planes)
    for parts_fit in (_are_stacks, _share_places):
        for index, mark in enumerate(marks):
            parts: dict[str, list[Plane]] = {}
            for plane in planes:
                value = plane.apart.get(mark, "") if mark else str(plane.piece.file.parent)
                parts.setdefault(value, []).append(plane)
            if len(parts) > 1 and parts_fit(list(parts.values()), whole, bool(mark)):
                return [
                    (", ".join(filter(None, (f"{mark} {value}".strip() if mark else "", more))), rest)
                    for value, part in parts.items()
                    for more, rest in _parts(part, marks[index + 1 :])
                ]
    return [("", planes)]


def _are_stacks(parts: list[list[Plane]], whole: Stack, by_tag: bool) -> bool:
    """Tell whether each part is an even stack, and the whole none, or none of one piece.

    Folders may hold one stack in pieces, one behind the other, and slices of one stack may have been taken in turns.
    """
    stacks = [_stack_of(part) for part in parts]
    if any(len(part) < 2 or stack.problem() or not stack.even for part, stack in zip(parts, stacks, strict=True)):
        return False
    ranges = sorted((of.min(), of.max()) for of in map(_heights, parts))
    side_by_side = any(start < end for (_, end), (start, _) in pairwise(ranges))
    odd = whole.problem() is not None or not whole.even
    return odd and side_by_side if by_tag else side_by_side


def _share_places(parts: list[list[Plane]], whole: Stack, by_tag: bool) -> bool:
    number = len(whole.positions_mm)
    places = 1 + int((whole.gaps_mm >= SAME_PLACE_MM).sum())
    return places < number and all(2 * _places(part) >= places for part in parts)


def _places(planes: list[Plane]) -> int:
    return 1 + int((np.diff(np.sort(_heights(planes))) >= SAME_PLACE_MM).sum())


def _heights(planes: list[Plane]) -> ndarray:
    return heights(np.array([plane.piece.position_mm for plane in planes]), np.array(planes[0].series.steps_mm))


def _series(part: str, planes: list[Plane]) -> Series:
    series = replace(planes[0].series, part=part)
    if series.problem is not None:
        return replace(series, slices=tuple(plane.piece for plane in planes))
    order = np.argsort(_heights(planes), kind="stable")
    pieces, copies = _without_copies([planes[index].piece for index in order], np.sort(_heights(planes)))
    series = replace(series, slices=tuple(pieces))
    stack = _stack(series)
    if problem := stack.problem():
        return replace(series, problem=problem)
    # By the slices as stored: interpolation must not make a volume of too few of them.
    stored = VolumeInfo((*series.shape, len(series.slices)), stack.affine, series.dtype)
    notes = [f"{copies} copies of slices left out"] if copies else []
    return replace(series, problem=stored.problem(), note="; ".join(filter(None, [*notes, stack.note()])))


def _without_copied_files(planes: list[Plane]) -> list[Plane]:
    """Leave out images that lie in another folder, too; one UID alone does not prove that they are the same."""
    kept: dict[object, Plane] = {}
    for plane in planes:
        name = plane.instance, plane.piece.position_mm
        original = kept.setdefault(name, plane)
        if original is not plane and not _alike(original.piece, plane.piece):
            kept[name, plane.piece.file] = plane
    return list(kept.values())


def _without_copies(pieces: list[Slice], heights_mm: ndarray) -> tuple[list[Slice], int]:
    """Leave out slices whose neighbour at the same place holds the same pixels, and count them.

    Where two at one place differ, all stay, and the stack has a problem.
    """
    kept = [pieces[0]]
    for piece, gap_mm in zip(pieces[1:], np.diff(heights_mm), strict=True):
        if gap_mm >= SAME_PLACE_MM:
            kept.append(piece)
        elif not _alike(kept[-1], piece):
            return pieces, 0
    return kept, len(pieces) - len(kept)


def _alike(one: Slice, other: Slice) -> bool:
    if replace(other, file=one.file, frame=one.frame) != one:
        return False
    try:
        with as_unusable(other.file):
            return np.array_equal(read_pixels(one.file)[one.frame], read_pixels(other.file)[other.frame])
    except UnusableVolume:
        return False


def _within(values: ndarray, ends: tuple[int, int]) -> ndarray:
    return np.asarray((values >= ends[0]) & (values <= ends[1]))


def _stack_of(planes: list[Plane]) -> Stack:
    order = np.argsort(_heights(planes), kind="stable")
    positions = np.array([planes[index].piece.position_mm for index in order])
    return Stack(positions, np.array(planes[0].series.steps_mm))


def _stack(series: Series) -> Stack:
    return Stack(np.array([piece.position_mm for piece in series.slices]), np.array(series.steps_mm))


def _near(one: Series, other: Series) -> bool:
    return bool(np.abs(np.subtract(one.steps_mm, other.steps_mm)).max() < SAME_STEP_MM)


def _with_unique_uids(found: list[Series]) -> list[Series]:
    """Tell volumes of one SeriesInstanceUID apart by what they are, and not by their order, which others may change.

    Where that does not tell them apart, as of folders of one name, the path does.
    """
    for words in (_what_it_is, lambda series: (str(series.slices[0].file),)):
        several = Counter(series.uid for series in found)
        found = [
            replace(series, uid=f"{series.uid}-{key_to_seed(*words(series)):016x}"[: len(series.uid) + 1 + TOKEN])
            if several[series.uid] > 1
            else series
            for series in found
        ]
    return found


def series_uid(uid: str) -> str:
    """Return the SeriesInstanceUID of the `uid` of a Series."""
    return TOKENS.sub("", uid)


def _what_it_is(series: Series) -> tuple[str, ...]:
    folder = series.slices[0].file.parent.name
    own = (series.patient, series.study, folder, series.part, series.problem or "", *map(str, series.shape))
    steps = (f"{step:.3f}" for vector in series.steps_mm for step in vector)
    return (*own, *steps, *((series.instance,) if series.instance else ()))
