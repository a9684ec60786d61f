"""The store: one chunked, compressed file a volume, of which a crop is read without the rest.

A file holds int16 or float16, [D, H, W] or [D, H, W, channels], axes towards RAS, in this order:

1. `MAGIC`, and length and CRC-32 of what follows up to the chunks;
2. JSON: format version, type, shape, number of places, and a `StoredInfo`;
3. places of the foreground, int16 [place, 3]; length and CRC-32 of each chunk, uint32 [chunk, 2];
4. the chunks in C order, each CHUNK_SIDE³ voxels of one channel, or what of that the volume has, compressed by blosc2.

Nothing is decompressed before its checksum agrees, so that a damaged file is named. Who writes a file writes its
checksums too: every number of the head is bounded before it is used, and a chunk is decompressed only where it is of
the kind that is written here and of the size of its place. A file holds numbers alone: blosc2's own container (.b2nd)
can hold expressions that are run on opening. Chunks are read and not mapped into memory, where one that was cut off
since would end the process.
"""

from __future__ import annotations

import json
import os
import stat
import struct
import weakref
import zlib
from collections.abc import Sequence
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float64, Int16, Shaped
from numpy import ndarray
from pydantic import BaseModel, ConfigDict, Field

from voxelwave.contracts import Grid
from voxelwave.data.reading.volume import VolumeInfo
from voxelwave.errors import DamagedVolume, UnusableVolume
from voxelwave.ops.files import replacing
from voxelwave.ops.texts import from_json

SUFFIX = ".vxw"
FORMAT_VERSION = 1
MAGIC, START = b"voxwave\n", struct.Struct("<8sII")
# 64 kB as int16, which fits the L2 cache, and so small that a 96³ crop decompresses little beside itself.
CHUNK_SIDE = 32
MOST_VOXELS = 2**30  # of a stored volume; `prepare` makes 10^9 at most
MOST_SOURCE_VOXELS = 2**32
LONGEST_HEAD = 2**24  # bytes: the table of two million chunks
CHUNK_HEADER = 32  # bytes, of blosc2
ZSTD = 5

Type = Literal["int16", "float16", "uint8", "int32"]  # the last two for labels
Side = Annotated[int, Field(ge=1, le=MOST_SOURCE_VOXELS)]
Entry = Annotated[float, Field(ge=-1e9, le=1e9)]
Line = tuple[Entry, Entry, Entry, Entry]
Matrix = tuple[Line, Line, Line, Line]


def is_stored(path: Path) -> bool:
    """Tell by its name whether a file is of the store."""
    return path.name.lower().endswith(SUFFIX)


class StoredInfo(BaseModel):
    """What is known of a stored volume.

    Attributes:
        modality: its name, or "label".
        affine: voxel to mm, RAS+, of the stored array.
        bounds: the stored values that become 0 and 1.
        settings: of the modality, that the stored values or bounds follow from.
        source_shape, source_affine: of the file that it was made of, axes towards RAS; voxel to mm, RAS+.
        cropped: whether the air around the volume was cut off, as far as there was any; None where nobody says it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    modality: str
    affine: Matrix
    bounds: tuple[float, float] = (0.0, 1.0)
    settings: dict[str, Any] = {}
    source_shape: tuple[Side, Side, Side] | tuple[()] = ()
    source_affine: Matrix | tuple[()] = ()
    cropped: bool | None = None


class _Head(BaseModel):
    """The JSON of a file, after its version."""

    model_config = ConfigDict(extra="forbid")

    format_version: int
    dtype: Type
    shape: tuple[Side, Side, Side] | tuple[Side, Side, Side, Annotated[int, Field(ge=1, le=16)]]
    places: Annotated[int, Field(ge=0)]
    info: StoredInfo


def write_stored(
    path: Path,
    array: Shaped[ndarray, "..."],
    info: StoredInfo,
    foreground: Int16[ndarray, "place 3"] | None = None,
) -> None:
    """Write `array` atomically; `foreground` are voxels to centre crops on.

    Raises OSError where the disk does not take it.
    """
    import blosc2

    dtype = array.dtype.newbyteorder("<")
    chunks = [
        blosc2.compress2(
            np.ascontiguousarray(array[place], dtype=dtype),
            codec=blosc2.Codec.ZSTD,
            clevel=1,
            filters=[blosc2.Filter.SHUFFLE],
            typesize=dtype.itemsize,
            nthreads=1,
        )
        for place in _places(array.shape)
    ]
    places = np.zeros((0, 3), dtype="<i2") if foreground is None else foreground.astype("<i2")
    described = {
        "format_version": FORMAT_VERSION,
        "dtype": array.dtype.name,
        "shape": array.shape,
        "places": len(places),
        "info": info.model_dump(),
    }
    table = np.array([(len(chunk), zlib.crc32(chunk)) for chunk in chunks], dtype="<u4")
    text = json.dumps(described).encode()
    head = struct.pack("<I", len(text)) + text + places.tobytes() + table.tobytes()
    with replacing(path) as part, part.open("wb") as file:
        file.write(START.pack(MAGIC, len(head), zlib.crc32(head)))
        file.write(head)
        file.writelines(chunks)


class StoredVolume:
    """A stored volume, held open: opening it reads next to nothing, a crop reads the chunks that it touches.

    Raises DamagedVolume for a damaged file, here and when a crop is read, UnusableVolume for another format version.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Not waiting: a pipe of that name would never be written to.
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            weakref.finalize(self, os.close, self._file)
            version = self._open()
        except FileNotFoundError:
            raise DamagedVolume("no such file") from None
        except OSError as denied:
            raise DamagedVolume(f"unreadable: {denied.strerror}") from None
        # struct.error, JSON, missing keys, an empty file: whatever arbitrary bytes lead to.
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise DamagedVolume("the store file is damaged or cut off: prepare again") from error
        if version != FORMAT_VERSION:
            raise UnusableVolume(f"store format {version}, this voxelwave reads {FORMAT_VERSION}: prepare it again")

    def _open(self) -> Any:
        """Read and check the head, and return its version, of which another is not read further."""
        about = os.fstat(self._file)
        magic, length, checksum = START.unpack(os.pread(self._file, START.size, 0))
        if not stat.S_ISREG(about.st_mode) or magic != MAGIC or length > LONGEST_HEAD:
            raise ValueError("no file of the store")
        head = os.pread(self._file, length, START.size)
        if len(head) != length or zlib.crc32(head) != checksum:
            raise ValueError("its head does not agree with its checksum")
        text_end = 4 + struct.unpack_from("<I", head)[0]
        described = from_json(head[4:text_end].decode("utf-8"))
        if (version := described["format_version"]) == FORMAT_VERSION:
            self._check(_Head.model_validate(described), head[text_end:], START.size + length, about.st_size)
        return version

    def _check(self, head: _Head, tables: bytes, start: int, end: int) -> None:
        self.info, self.dtype, self.shape = head.info, head.dtype, head.shape
        self._counts = _counts(self.shape)
        places_end = 6 * head.places
        if prod(self.grid) > MOST_VOXELS or prod(self.info.source_shape) > MOST_SOURCE_VOXELS:
            raise ValueError(f"no volume has shape {self.shape}, made of {self.info.source_shape}")
        if len(tables) != places_end + 8 * prod(self._counts):
            raise ValueError(f"its tables are not those of {head.places} places and shape {self.shape}")
        self.foreground: Int16[ndarray, "place 3"] = np.frombuffer(tables[:places_end], dtype="<i2").reshape(-1, 3)
        table = np.frombuffer(tables[places_end:], dtype="<u4").reshape(-1, 2)
        self._ends = start + np.cumsum(table[:, 0], dtype=np.int64)
        self._lengths, self._checksums = table[:, 0].tolist(), table[:, 1].tolist()
        if self._ends[-1] != end or max(self._lengths) > self._largest_chunk():
            raise ValueError(f"its chunks end at {self._ends[-1]} of {end} bytes, or are longer than can be")
        if (self.foreground < 0).any() or (self.foreground >= self.grid).any():
            raise ValueError("its foreground lies beyond it")
        if not np.linalg.det(self.affine) or not self.info.bounds[0] < self.info.bounds[1]:
            raise ValueError("its affine or its bounds do not map values to others")

    def _largest_chunk(self) -> int:
        """Return the bytes of a chunk that does not compress."""
        return CHUNK_HEADER + CHUNK_SIDE**3 * np.dtype(self.dtype).itemsize

    @property
    def grid(self) -> Grid:
        """[D, H, W]."""
        depth, height, width = self.shape[:3]
        return depth, height, width

    @cached_property
    def affine(self) -> Float64[ndarray, "4 4"]:
        """Voxel to mm, RAS+."""
        return np.array(self.info.affine, dtype=np.float64)

    @property
    def source(self) -> VolumeInfo:
        """Grid and affine of the file that it was made of, axes towards RAS; its own where these are not known."""
        if not self.info.source_shape:
            return VolumeInfo(self.shape, self.affine, self.dtype)
        return VolumeInfo(self.info.source_shape, np.array(self.info.source_affine, dtype=np.float64), self.dtype)

    def crop(self, start: Sequence[int], size: Sequence[int]) -> Shaped[ndarray, "..."]:
        """Return the stored values of the cuboid of `size` that begins at `start`, with all channels."""
        starts, stops = list(start), [first + side for first, side in zip(start, size, strict=True)]
        if any(first < 0 or last > side for first, last, side in zip(starts, stops, self.shape, strict=False)):
            raise ValueError(f"a crop from {starts} to {stops} does not lie in a volume of shape {self.shape}")
        crop = np.empty((*size, *self.shape[3:]), dtype=self.dtype)
        touched = [
            range(first // CHUNK_SIDE, -(-last // CHUNK_SIDE)) for first, last in zip(starts, stops, strict=True)
        ]
        for index in product(*touched, *(range(number) for number in self.shape[3:])):
            place = _place(index, self.shape)
            chunk = self._chunk(int(np.ravel_multi_index(index, self._counts)), place)
            into, of = [], []
            for side, first, last in zip(place, starts, stops, strict=False):
                begin, end = max(side.start, first), min(side.stop, last)
                into.append(slice(begin - first, end - first))
                of.append(slice(begin - side.start, end - side.start))
            crop[(*into, *place[3:])] = chunk[tuple(of)]
        return crop

    def read(self) -> Shaped[ndarray, "..."]:
        """Return all stored values."""
        return self.crop((0, 0, 0), self.grid)

    def _chunk(self, number: int, place: tuple[slice, ...]) -> Shaped[ndarray, "..."]:
        import blosc2

        length = self._lengths[number]
        chunk = np.empty([side.stop - side.start for side in place], dtype=self.dtype)
        try:
            packed = os.pread(self._file, length, int(self._ends[number]) - length)
            # In this order: blosc2 writes as many bytes as a chunk says, whatever there is room for.
            if zlib.crc32(packed) != self._checksums[number] or not _written_here(packed, chunk.nbytes):
                raise ValueError("not what was written")
            blosc2.decompress2(packed, dst=chunk, nthreads=1)
        except OSError as error:
            raise DamagedVolume(f"unreadable: {error.strerror}") from None
        except (ValueError, RuntimeError, TypeError) as error:
            voxels = f"chunk {number}, voxels [{', '.join(f'{side.start}:{side.stop}' for side in place[:3])}]"
            raise DamagedVolume(f"{voxels}, is damaged: delete the file and prepare again") from error
        return chunk


def is_store_file(path: Path) -> bool:
    """Tell by how it begins whether a file is of the store, whatever its name says."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _written_here(packed: bytes, nbytes: int) -> bool:
    """Tell whether a chunk is of the kind that `write_stored` makes, and holds as many bytes.

    Source: c-blosc2, README_CHUNK_FORMAT. A chunk of another kind may refer to a file, or to a filter that is a plugin.
    """
    import blosc2

    if len(packed) < CHUNK_HEADER or blosc2.get_cbuffer_sizes(packed)[:2] != (nbytes, len(packed)):
        return False
    flags, filters, codec, rest, special = packed[2], packed[16:22], packed[22], packed[24:31], packed[31]
    plain = flags & 0b101 == 0b101 and max(filters) <= 1 and not any(rest) and special in (0, 0x10)
    return plain and codec == ZSTD and (bool(flags & 0b10) or flags >> 5 == 4)  # bytes as they are, or Zstandard


def _counts(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the number of chunks along each axis."""
    return (*(-(-side // CHUNK_SIDE) for side in shape[:3]), *shape[3:])


def _place(index: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """Return the voxels of the chunk at `index`."""
    spatial = (
        slice(i * CHUNK_SIDE, min((i + 1) * CHUNK_SIDE, side)) for i, side in zip(index[:3], shape, strict=False)
    )
    return (*spatial, *(slice(channel, channel + 1) for channel in index[3:]))


def _places(shape: Sequence[int]) -> list[tuple[slice, ...]]:
    return [_place(index, shape) for index in product(*map(range, _counts(shape)))]
