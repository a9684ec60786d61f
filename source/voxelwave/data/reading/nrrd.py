"""Volumes from NRRD files, with attached or detached data (https://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import bz2
import gzip
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from voxelwave.data.reading.unreadable import as_unusable, check_gzip_end, extra
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
MM = {"m": 1000.0, "cm": 10.0, "um": 0.001, "µm": 0.001, "μm": 0.001, "nm": 1e-6}  # others are mm, or not said
COLOURS = ("rgb-color", "rgba-color", "hsv-color", "xyz-color", "3-color", "4-color")
# The names of C, in which "float" is not the one of NumPy.
TYPES = {"char": "int8", "short": "int16", "int": "int32", "longlong": "int64", "float": "float32", "double": "float64"}
TEXT = ("ascii", "text", "txt")
DECOMPRESSED: dict[str, Callable[[BinaryIO], Any]] = {
    "raw": nullcontext,
    **dict.fromkeys(("gzip", "gz"), lambda file: gzip.GzipFile(fileobj=file)),
    **dict.fromkeys(("bzip2", "bz2"), bz2.BZ2File),
}
LIST = re.compile(rb"data ?file\s*:\s*LIST\b", re.IGNORECASE)
NUMBERED = re.compile(
    r"(?P<before>[^%]*)%(?P<width>\d{0,2})d(?P<behind>[^%\s]*) (?P<first>\d+) (?P<last>\d+) (?P<step>-?\d+)( \d)?"
)
LONGEST_LINE, MOST_LINES = 1 << 16, 1 << 14


class _Layout(NamedTuple):
    info: VolumeInfo
    axes: tuple[int, ...]  # of the file: the three of space first


def read_nrrd_header(path: Path) -> VolumeInfo:
    """Read the header alone, the axes of space first; raises UnusableVolume where there is none."""
    with _opened(path) as (_, header, _):
        return _layout(header).info


def read_nrrd(path: Path, *, channels: int = 3, frame: int | None = None) -> Volume:
    """Read [D, H, W] or [D, H, W, channels] towards RAS; `frame` is the number of the volume in a file of several.

    Raises UnusableVolume for whatever cannot be read or is not one volume, InputError without the extra `dicom`.
    """
    with _opened(path) as (file, header, names):
        info, axes = _layout(header)
        if problem := info.problem(channels, several=frame is not None):
            raise UnusableVolume(problem)
        dtype, sizes = _dtype(header), [int(size) for size in header["sizes"]]
        parts = _beside(path, names)
        if parts:
            values = np.concatenate([_values(part, header, dtype, math.prod(sizes) // len(parts)) for part in parts])
        else:
            values = _values(file, header, dtype, math.prod(sizes))
        stored = one_of(values.reshape(sizes, order="F").transpose(axes), frame)
        return towards_ras(stored, info.affine)._replace(source=info)


def data_files(path: Path) -> list[Path]:
    """Return the files in which the data of a detached header lie, none where it is attached or cannot be read."""
    try:
        with _opened(path) as (_, _, names):
            return _beside(path, names)
    except UnusableVolume:
        return []


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, dict[str, Any], list[str]]]:
    """Yield the file, behind its header, the fields of that, and the names of the files with its data, if any."""
    nrrd = extra("nrrd", package="pynrrd", kind="NRRD")
    with as_unusable(path), path.open("rb") as file:
        # 1. The lines up to the first empty one, or, where names of files end the header, up to these.
        lines: list[str] = []
        names: list[str] = []
        while (line := file.readline(LONGEST_LINE).rstrip()) and len(lines) < MOST_LINES:
            lines.append(line.decode("ascii", "ignore"))
            if LIST.match(line):
                names = [name.decode() for name in map(bytes.strip, islice(file, MOST_LINES)) if name]
                break
        header = nrrd.read_header(lines)
        # 2. One file with the data, or a pattern of their names.
        detached = str(header.get("data file", header.get("datafile", "")))
        if detached and not names:
            names = _numbered(detached) or [detached]
        yield file, header, names


def _numbered(detached: str) -> list[str]:
    """Return the names that a pattern such as `slice%03d.raw 1 20 1` stands for; [] for no pattern."""
    if (found := NUMBERED.fullmatch(detached)) is None:
        return []
    first, last, step = (int(found[name]) for name in ("first", "last", "step"))
    numbers = range(first, last + (1 if step > 0 else -1), step) if step else range(0)
    if not 0 < len(numbers) <= MOST_LINES:
        raise UnusableVolume(f"its data is said to lie in files {detached}, which are none")
    return [f"{found['before']}{number:{found['width']}d}{found['behind']}" for number in numbers]


def _beside(path: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of these names beside `path`, where they have to be."""
    # Path takes "./" away, with which Teem itself writes the name.
    if elsewhere := next((name for name in names if Path(name).name != str(Path(name))), None):
        raise UnusableVolume(f"its data is said to lie elsewhere, in {elsewhere}: put it beside its header")
    files = [path.with_name(Path(name).name) for name in names]
    if missing := next((file for file in files if not file.is_file()), None):
        raise UnusableVolume(f"the file with its data is missing ({missing.name})")
    return files


def _values(
    source: Path | BinaryIO, header: Mapping[str, Any], dtype: np.dtype[Any], count: int
) -> Shaped[ndarray, " value"]:
    """Read `count` values, and never more than these take, whatever a compressed file holds."""
    with nullcontext(source) if not isinstance(source, Path) else source.open("rb") as file:
        # Lines are skipped before, bytes after decompression.
        for _ in range(int(header.get("line skip", header.get("lineskip", 0)))):
            if not file.readline():
                break
        encoding, skip = header["encoding"].lower(), int(header.get("byte skip", header.get("byteskip", 0)))
        if encoding in TEXT:
            return np.array(file.read().split(), dtype)
        if encoding not in DECOMPRESSED:
            raise UnusableVolume(f"its encoding '{encoding}' is not read")
        with DECOMPRESSED[encoding](file) as stream:
            if skip < 0:  # of raw data alone
                stream.seek(-dtype.itemsize * count, os.SEEK_END)
            else:
                stream.seek(skip, os.SEEK_CUR)
            values = np.frombuffer(stream.read(dtype.itemsize * count), dtype, count)
            if isinstance(stream, gzip.GzipFile):
                check_gzip_end(stream)
            return values


def _dtype(header: Mapping[str, Any]) -> np.dtype[Any]:
    dtype = np.dtype(_voxel_type(str(header["type"]), []))
    if dtype.itemsize > 1 and header["encoding"].lower() not in TEXT:
        return dtype.newbyteorder("<" if header["endian"] == "little" else ">")
    return dtype


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
    units = (str(unit).strip('" ').lower() for unit in header.get("space units", ()))
    mm = [MM.get(unit, 1.0) for unit in units] or [1.0] * 3
    affine = np.diag([*np.multiply(SPACES[space], mm), 1.0]) @ affine
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
