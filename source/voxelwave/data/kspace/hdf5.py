"""HDF5 files of strangers: nothing leads out of the file, nothing is larger than was allowed, errors are one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Int64, UInt8

from voxelwave.data.reading.unreadable import as_unusable
from voxelwave.errors import DamagedVolume, UnusableVolume

MOST_VALUES = 2**28  # of one slice, all coils: 2 GiB as complex64
MOST_SLICES, MOST_COILS = 2**14, 2**10
MOST_AXES = 5
ENTRY, LARGEST_ENTRY = 16, 2**12  # bytes of an entry of any length, how long it is and where; of a record
MOST_COMPRESSION = 1100  # to one; deflate reaches 1032
LONGEST_TEXT, LONGEST_HEADER = 200, 2**22
# Filters that HDF5 and h5py bring along; any other is a plugin, loaded by its number.
FILTERS = (
    *(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP),
    *(h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET, h5py.h5z.FILTER_LZF),
)
CUT = re.compile(r"truncated file: eof = (\d+),.*stored_eof = (\d+)")


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Yield the file, open for reading as long as the block lasts: no handle can outlive it, or cross a fork.

    Raises DamagedVolume, without the path, for whatever a damaged file leads to.
    """
    with as_unusable(path):
        try:
            file = h5py.File(path, "r", locking=False)  # network file systems may have no locks
        except OSError as error:
            if found := CUT.search(str(error)):
                raise DamagedVolume(f"cut short: {found[1]} of {found[2]} bytes are there; copy it again") from error
            raise
        with file:
            yield file


def has(group: h5py.Group, name: str) -> bool:
    """Tell whether `group` has a link of this name, without following it."""
    return bool(group.id.links.exists(name.encode()))


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return what lies in `group` itself; raises UnusableVolume where `name` is a link to elsewhere."""
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise UnusableVolume(f"'{name}' is a link, which may lead out of the file: store the data itself")
    return group[name]


def dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return an array whose values lie in the file itself, of any type.

    Raises UnusableVolume for a group, a link, values in other files, or filters that would load code.
    """
    found = member(group, name)
    if not isinstance(found, h5py.Dataset):
        raise UnusableVolume(f"'{name}' is a group, one array of slices of one size is needed")
    if found.external or found.is_virtual:
        raise UnusableVolume(f"the values of '{name}' are said to lie in other files: store them in this one")
    if unknown := [number for number in _filters(found) if number not in FILTERS]:
        raise UnusableVolume(f"'{name}' is compressed by filter {unknown[0]}, which is not HDF5's own: use gzip")
    return found


def numbers(group: h5py.Group, name: str, *, num_axes: tuple[int, ...], most_values: int) -> h5py.Dataset:
    """Return an array of plain numbers, with one of these numbers of axes, of which `most_values` may be in a slice.

    Raises UnusableVolume for anything else.
    """
    found = dataset(group, name)
    if found.dtype.kind not in "cfiub":
        kind = "objects of differing size" if found.dtype.kind == "O" else f"values of type {found.dtype}"
        raise UnusableVolume(f"'{name}' holds {kind[:LONGEST_TEXT]}, numbers are needed")
    shape = found.shape or ()
    if len(shape) not in num_axes or 0 in shape:
        wanted = " or ".join(str(number) for number in num_axes)
        raise UnusableVolume(f"'{name}' has shape {shape[:MOST_AXES]}, {wanted} axes that are not empty are needed")
    check_size(name, shape, most_values=most_values)
    if found.chunks and prod(found.chunks) > most_values:
        raise UnusableVolume(
            f"'{name}' is stored in chunks of {prod(found.chunks):.3g} values: store it in smaller ones"
        )
    # Parts that were never written take no room in a file, and would be read as zeros.
    held = found.id.get_storage_size() * (MOST_COMPRESSION if _filters(found) else 1)
    if held < prod(shape) * found.dtype.itemsize:
        raise UnusableVolume(f"'{name}' claims the shape {shape}, of which most was never written")
    return found


def check_size(name: str, shape: tuple[int, ...], *, most_values: int) -> None:
    """Raise UnusableVolume for an array whose slices, along the first axis, are too many or too large."""
    each = prod(shape[1:])
    if shape[0] > MOST_SLICES and len(shape) > 1:
        raise UnusableVolume(f"'{name}' claims {shape[0]} slices, and at most {MOST_SLICES} are read")
    if max(each, shape[0]) > most_values:
        raise UnusableVolume(
            f"'{name}' claims {max(each, shape[0]):.3g} values a slice, and at most most_values = {most_values} "
            "are read"
        )


def number_attribute(owner: h5py.Group, name: str) -> float | None:
    """Return a number that is attached to `owner`, None where there is none; raises UnusableVolume for another type."""
    if not h5py.h5a.exists(owner.id, name.encode()):
        return None
    stored = owner.attrs.get_id(name)
    if prod(stored.shape) != 1 or stored.dtype.kind not in "fiu":
        raise UnusableVolume(f"its attribute '{name}' is no single number")
    return float(np.asarray(owner.attrs[name]).item())


def text_attribute(owner: h5py.Group, name: str) -> str:
    """Return a short text that is attached to `owner`, "" where there is none."""
    if not h5py.h5a.exists(owner.id, name.encode()):
        return ""
    stored = owner.attrs.get_id(name)
    if stored.shape != () or h5py.check_string_dtype(stored.dtype) is None:
        return ""
    return _decoded(owner.attrs[name])[:LONGEST_TEXT]


def text(group: h5py.Group, name: str) -> str:
    """Return the text that an array of one entry holds; raises UnusableVolume for anything else, or too long a one."""
    found = dataset(group, name)
    if prod(found.shape) != 1 or h5py.check_string_dtype(found.dtype) is None or found.dtype.itemsize > LONGEST_HEADER:
        raise UnusableVolume(f"'{name}' is no text")
    of_any_length = found.dtype.kind == "O"
    if of_any_length and (length := int(lengths(stored_entries(found))[0])) > LONGEST_HEADER:
        raise UnusableVolume(f"'{name}' claims to be a text of {length} letters, and at most {LONGEST_HEADER} are read")
    return _decoded(found[()] if found.shape == () else found[:].ravel()[0])


def stored_entries(found: h5py.Dataset) -> UInt8[np.ndarray, "entry size"]:
    """Return the bytes of each entry of an array of texts, rows or records, as they lie in the file.

    What an entry of any length, such as a text, refers to is not read. HDF5 would make room for as much as it claims
    before looking whether the file holds as much, and for a field of a record it would read all its other fields too.

    Raises UnusableVolume for entries that are compressed, or not laid out as HDF5 does.
    """
    if _filters(found):
        raise UnusableVolume(f"'{found.name}' is compressed, which is not read of entries of any length: decompress it")
    size, each = found.id.get_storage_size(), found.size
    if not found.chunks:
        step, rest = divmod(size, each)
        if rest or not 0 < step <= LARGEST_ENTRY or (offset := found.id.get_offset()) is None:
            raise UnusableVolume(f"'{found.name}' is not laid out as HDF5 does: the file is damaged")
        with Path(found.file.filename).open("rb") as file:
            file.seek(offset)
            return np.frombuffer(file.read(size), np.uint8).reshape(each, step)
    chunks: list[h5py.h5d.StoreInfo] = []
    found.id.chunk_iter(chunks.append)
    count = prod(found.chunks)
    steps = {divmod(chunk.size, count) for chunk in chunks}
    starts = sorted(chunk.chunk_offset for chunk in chunks)
    whole = starts == [(start,) for start in range(0, each, count)]
    step, rest = steps.pop() if len(steps) == 1 else (0, 0)
    if rest or not whole or not 0 < step <= LARGEST_ENTRY:
        raise UnusableVolume(f"'{found.name}' is not laid out as HDF5 does: the file is damaged")
    held = b"".join(found.id.read_direct_chunk(start)[1] for start in starts)
    return np.frombuffer(held, np.uint8).reshape(-1, step)[:each]


def lengths(entries: UInt8[np.ndarray, "entry size"], place: int = 0) -> Int64[np.ndarray, " entry"]:
    """Return how much an entry of any length says that it holds, `place` bytes behind the start of each of `entries`.

    Source: HDF5 file format, section VIII, variable-length types: the length, then where it lies.
    """
    if place + ENTRY > entries.shape[1]:
        raise UnusableVolume("its texts or acquisitions are not laid out as HDF5 does: the file is damaged")
    return np.ascontiguousarray(entries[:, place : place + 4]).view("<u4")[:, 0].astype(np.int64)


def _filters(found: h5py.Dataset) -> list[int]:
    properties = found.id.get_create_plist()
    return [properties.get_filter(place)[0] for place in range(properties.get_nfilters())]


def _decoded(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
