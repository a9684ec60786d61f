"""The store: one chunked, compressed file a volume, of which a crop is read without the rest.

A file is a blosc2 array (.b2nd) of int16 or float16, [D, H, W] or [D, H, W, channels], axes towards RAS. What belongs
to it travels in it: a `StoredInfo` as JSON, and places of its foreground.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int16, Shaped
from numpy import ndarray
from pydantic import BaseModel, ConfigDict

from voxelwave.contracts import Grid
from voxelwave.data.modalities import DamagedVolume, UnusableVolume
from voxelwave.ops.files import replacing

SUFFIX = ".b2nd"
FORMAT_VERSION = 1
# Of what was tried the smallest files that give a 96³ crop in about 2 ms; a block is 64 kB and fits the L2 cache.
CHUNK_SIDE, BLOCK_SIDE = 64, 32
INFO, PLACES = "voxelwave", "foreground"


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
        source: the file that it was made of.
        source_shape: of that file's spatial axes, as stored there.
        source_affine: voxel to mm, RAS+, of that file.
        checksums: CRC-32 of each compressed chunk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int = FORMAT_VERSION
    modality: str
    affine: tuple[tuple[float, ...], ...]
    bounds: tuple[float, float] = (0.0, 1.0)
    settings: dict[str, Any] = {}
    source: str = ""
    source_shape: tuple[int, ...] = ()
    source_affine: tuple[tuple[float, ...], ...] = ()
    checksums: tuple[int, ...] = ()


def write_stored(
    path: Path,
    array: Shaped[ndarray, "..."],
    info: StoredInfo,
    foreground: Int16[ndarray, "place 3"] | None = None,
) -> None:
    """Write `array` atomically; `foreground` are voxels to centre crops on.

    Raises:
        OSError: where the disk does not take it.
    """
    import blosc2

    sides = [(CHUNK_SIDE, BLOCK_SIDE)] * 3 + [(1, 1)] * (array.ndim - 3)
    stored = blosc2.asarray(
        np.ascontiguousarray(array),
        chunks=tuple(min(chunk, side) for (chunk, _), side in zip(sides, array.shape, strict=True)),
        blocks=tuple(min(block, side) for (_, block), side in zip(sides, array.shape, strict=True)),
        cparams={
            "codec": blosc2.Codec.ZSTD,
            "clevel": 1,
            "filters": [blosc2.Filter.SHUFFLE],
            "typesize": array.dtype.itemsize,
            "nthreads": 1,
        },
        dparams={"nthreads": 1},
    )
    # Of the chunks as a reader gets them: those of a single value, air, have another header before they are written.
    written = blosc2.ndarray_from_cframe(stored.to_cframe())
    checksums = tuple(zlib.crc32(written.schunk.get_chunk(number)) for number in range(written.schunk.nchunks))
    stored.schunk.vlmeta[INFO] = info.model_copy(update={"checksums": checksums}).model_dump_json()
    if foreground is not None:
        stored.schunk.vlmeta[PLACES] = np.ascontiguousarray(foreground, dtype="<i2").tobytes()
    with replacing(path) as part:
        part.write_bytes(stored.to_cframe())


class StoredVolume:
    """A stored volume, mapped into memory: opening it reads next to nothing, a crop reads the chunks that it touches.

    Each chunk is checked against its checksum when it is first read; that takes a third of the time of the crop.

    Raises:
        DamagedVolume: for a file that is no store or is damaged, here and when a crop is read.
        UnusableVolume: for a store of another format version.
    """

    def __init__(self, path: Path) -> None:
        import blosc2

        if not path.is_file():
            raise DamagedVolume("no such file")
        try:
            self._array: Any = blosc2.open(str(path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
            metadata = self._array.schunk.vlmeta
            described = json.loads(metadata[INFO])
            version = described["format_version"]
            if version == FORMAT_VERSION:
                self.info = StoredInfo.model_validate(described)
            places = metadata.get(PLACES, b"")
            self.foreground: Int16[ndarray, "place 3"] = np.frombuffer(places, dtype="<i2").reshape(-1, 3)
        # From arbitrary bytes blosc2 raises anything.
        except Exception as error:
            raise DamagedVolume("the store file is damaged or cut off: prepare it again") from error
        if version != FORMAT_VERSION:
            raise UnusableVolume(f"store format {version}, this voxelwave reads {FORMAT_VERSION}: prepare it again")
        self.path = path
        self._checked: set[int] = set()

    @property
    def shape(self) -> tuple[int, ...]:
        """[D, H, W] or [D, H, W, channels]."""
        return tuple(int(side) for side in self._array.shape)

    @property
    def grid(self) -> Grid:
        """[D, H, W]."""
        depth, height, width = self.shape[:3]
        return depth, height, width

    @property
    def dtype(self) -> str:
        """Of the stored values: int16 or float16 (labels: as small as they need)."""
        return str(self._array.dtype)

    @property
    def affine(self) -> Float64[ndarray, "4 4"]:
        """Voxel to mm, RAS+."""
        return np.array(self.info.affine, dtype=np.float64)

    def crop(self, start: Sequence[int], size: Sequence[int]) -> Shaped[ndarray, "..."]:
        """Return the stored values of the cuboid of `size` that begins at `start`, with all channels."""
        stop = [first + side for first, side in zip(start, size, strict=True)]
        self._check(start, stop)
        first, second, third = (slice(begin, end) for begin, end in zip(start, stop, strict=True))
        try:
            return np.asarray(self._array[first, second, third])
        except (RuntimeError, ValueError) as error:
            raise DamagedVolume(f"the store cannot be decompressed ({error}): prepare it again") from None

    def read(self) -> Shaped[ndarray, "..."]:
        """Return all stored values."""
        return self.crop((0, 0, 0), self.grid)

    def _check(self, start: Sequence[int], stop: Sequence[int]) -> None:
        chunks, shape = self._array.chunks, self.shape
        touched = [
            range(first // side, -(-last // side)) for first, last, side in zip(start, stop, chunks, strict=False)
        ]
        touched += [range(number) for number in shape[3:]]
        counts = tuple(-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True))
        for place in product(*touched):
            number = int(np.ravel_multi_index(place, counts))
            if number in self._checked:
                continue
            if not self._intact(number):
                voxels = ", ".join(
                    f"{index * side}:{min((index + 1) * side, end)}"
                    for index, side, end in zip(place, chunks, shape, strict=True)
                )
                raise DamagedVolume(f"chunk {number} of the store, voxels [{voxels}], is damaged: prepare it again")
            self._checked.add(number)

    def _intact(self, number: int) -> bool:
        try:
            return zlib.crc32(self._array.schunk.get_chunk(number)) == self.info.checksums[number]
        except (RuntimeError, IndexError):
            return False
