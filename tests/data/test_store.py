"""A crop of the store is the slice of the array; damage is found and named."""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from contextlib import suppress

import blosc2
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.data.store import MAGIC, START, StoredInfo, StoredVolume, is_store_file, write_stored
from voxelwave.errors import DamagedVolume, UnusableVolume

INFO = StoredInfo(modality="mri", affine=np.diag([1.0, 2, 3, 1]).tolist(), bounds=(3.0, 700.0))


def stored(path, array, **options):
    write_stored(path, array, INFO, **options)
    return StoredVolume(path)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_crop_equals_the_slice_of_the_array(tmp_path_factory, data):
    shape = data.draw(st.tuples(*[st.integers(8, 150)] * 3))
    channels = data.draw(st.sampled_from([(), (3,)]))
    dtype = data.draw(st.sampled_from([np.int16, np.float16]))
    array = np.random.default_rng(0).normal(0, 100, (*shape, *channels)).astype(dtype)
    volume = stored(tmp_path_factory.mktemp("store") / "a.vxw", array)
    assert (volume.shape, volume.grid, volume.dtype) == (array.shape, shape, np.dtype(dtype).name)
    for _ in range(3):
        start = [data.draw(st.integers(0, side - 1)) for side in shape]
        size = [data.draw(st.integers(1, side - first)) for first, side in zip(start, shape, strict=True)]
        d, h, w = (slice(first, first + side) for first, side in zip(start, size, strict=True))
        assert np.array_equal(volume.crop(start, size), array[d, h, w])
    assert np.array_equal(volume.read(), array)


@pytest.mark.parametrize("value", [0, 1, -1024])
@pytest.mark.parametrize("dtype", [np.int16, np.float16, np.uint8])
def test_chunks_of_a_single_value_are_not_taken_for_damage(tmp_path, dtype, value):
    array = np.random.default_rng(0).integers(0, 200, (140, 70, 66)).astype(dtype)
    array[:130] = np.array(value).astype(dtype)
    assert np.array_equal(stored(tmp_path / "a.vxw", array).read(), array)


def test_what_belongs_to_a_volume_travels_with_it(tmp_path):
    places = np.array([[1, 2, 3], [9, 8, 7]], dtype=np.int16)
    volume = stored(tmp_path / "a.vxw", np.zeros((10, 10, 10), np.int16), foreground=places)
    assert volume.info == INFO
    assert np.array_equal(volume.affine, np.diag([1.0, 2, 3, 1]))
    assert np.array_equal(volume.foreground, places)
    assert [file.name for file in tmp_path.iterdir()] == ["a.vxw"]


def test_a_damaged_chunk_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.vxw"
    array = np.random.default_rng(0).integers(-900, 900, (40, 40, 40)).astype(np.int16)
    write_stored(path, array, INFO)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    volume = StoredVolume(path)
    assert np.array_equal(volume.crop((0, 0, 0), (32, 40, 40)), array[:32])
    for _ in range(2):  # a second attempt does not take it for checked
        with pytest.raises(DamagedVolume, match=r"chunk 7, voxels \[32:40, 32:40, 32:40\], is damaged"):
            volume.crop((30, 30, 30), (5, 5, 5))


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.99])
def test_a_store_cut_off_is_damaged(tmp_path, kept):
    path = tmp_path / "a.vxw"
    write_stored(path, np.random.default_rng(0).integers(0, 900, (70, 70, 70)).astype(np.int16), INFO)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DamagedVolume, match="damaged"):
        StoredVolume(path).read()


def test_no_flipped_bit_changes_values_or_metadata_unseen(tmp_path):
    path = tmp_path / "a.vxw"
    array = np.random.default_rng(0).integers(0, 9, (12, 40, 10)).astype(np.int16)
    write_stored(path, array, INFO, np.array([[1, 2, 3], [9, 8, 7]], dtype=np.int16))
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UnusableVolume):
            StoredVolume(path).read()


def test_a_head_that_lies_with_a_right_checksum_is_damaged(tmp_path):
    path = tmp_path / "a.vxw"
    write_stored(path, np.zeros((9, 9, 9), np.int16), INFO)
    content = path.read_bytes()
    for told, lie in ((b"[9, 9, 9]", b"[9,99, 9]"), (b'"int16"', b'"int8" '), (b'"places": 0', b'"places": 9')):
        head = content[START.size :].replace(told, lie)
        _, length, _ = START.unpack_from(content)
        path.write_bytes(START.pack(MAGIC, length, zlib.crc32(head[:length])) + head)
        with pytest.raises(DamagedVolume, match="damaged"):
            StoredVolume(path)


def test_another_file_and_another_format_version_are_refused(tmp_path):
    path = tmp_path / "a.vxw"
    path.write_text("no store")
    with pytest.raises(DamagedVolume, match="damaged"):
        StoredVolume(path)
    text = json.dumps({"format_version": 9, "novelty": True}).encode()
    head = len(text).to_bytes(4, "little") + text
    path.write_bytes(START.pack(MAGIC, len(head), zlib.crc32(head)) + head)
    with pytest.raises(UnusableVolume, match="store format 9, this voxelwave reads 1"):
        StoredVolume(path)
    with pytest.raises(DamagedVolume, match="no such file"):
        StoredVolume(tmp_path / "none.vxw")


def test_a_crop_beyond_the_volume_is_an_error(tmp_path):
    volume = stored(tmp_path / "a.vxw", np.zeros((9, 9, 9), np.int16))
    for start, size in (((-1, 0, 0), (2, 2, 2)), ((0, 5, 0), (2, 5, 2))):
        with pytest.raises(ValueError, match="does not lie in a volume"):
            volume.crop(start, size)


def test_opening_and_reading_again_and_again_takes_no_memory(tmp_path):
    write_stored(tmp_path / "a.vxw", np.zeros((9, 9, 9), np.int16), INFO, np.zeros((1024, 3), np.int16))
    process = psutil.Process()

    def grown(times):
        before = process.memory_info().rss
        for _ in range(times):
            StoredVolume(tmp_path / "a.vxw").crop((0, 0, 0), (9, 9, 9))
        return process.memory_info().rss - before

    grown(300)
    assert grown(3000) < 3000 * 500  # bytes; the places alone are 6,144


# What somebody else wrote: every checksum is right.


def assembled(path, described, chunks, places=b""):
    text = json.dumps(described).encode()
    table = np.array([(len(chunk), zlib.crc32(chunk)) for chunk in chunks], "<u4").tobytes()
    head = struct.pack("<I", len(text)) + text + places + table
    path.write_bytes(START.pack(MAGIC, len(head), zlib.crc32(head)) + head + b"".join(chunks))
    return path


def taken_apart(path):
    content = path.read_bytes()
    _, length, _ = START.unpack_from(content)
    text_end = START.size + 4 + struct.unpack_from("<I", content, START.size)[0]
    described = json.loads(content[START.size + 4 : text_end])
    places_end = text_end + 6 * described["places"]
    lengths = np.frombuffer(content[places_end : START.size + length], "<u4").reshape(-1, 2)[:, 0]
    ends = START.size + length + np.cumsum(lengths)
    chunks = [content[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    return described, chunks, content[text_end:places_end]


def packed(array, codec=blosc2.Codec.ZSTD, filters=(blosc2.Filter.SHUFFLE,)):
    return blosc2.compress2(array, codec=codec, clevel=1, filters=list(filters), typesize=2, nthreads=1)


@pytest.fixture
def small(tmp_path):
    """A volume of one chunk of 1,024 bytes, as it lies on disk."""
    array = np.random.default_rng(0).integers(0, 99, (8, 8, 8)).astype(np.int16)
    write_stored(tmp_path / "a.vxw", array, INFO, np.array([[1, 2, 3]], np.int16))
    return tmp_path / "a.vxw"


@pytest.mark.parametrize(
    "chunk",
    [
        packed(np.full(2**22, 9, np.int16)),  # 8 MB, where there is room for 1 kB
        packed(np.zeros(513, np.int16)),
        packed(np.zeros(511, np.int16)),
        packed(np.arange(512, dtype=np.int16), codec=blosc2.Codec.LZ4),
        packed(np.arange(512, dtype=np.int16), filters=(blosc2.Filter.DELTA,)),
        packed(np.arange(512, dtype=np.int16)) + b"more",
        packed(np.arange(512, dtype=np.int16))[:-9],
        b"",
        b"short",
        bytes(64),
    ],
)
def test_a_chunk_that_does_not_fit_its_place_is_never_decompressed(small, monkeypatch, chunk):
    described, (_, *others), places = taken_apart(small)
    assembled(small, described, [chunk, *others], places)
    monkeypatch.setattr(blosc2, "decompress2", lambda *args, **kwargs: pytest.fail("decompressed"))
    with pytest.raises(DamagedVolume, match="damaged"):
        StoredVolume(small).read()


def test_a_file_taken_apart_and_assembled_is_the_same(small):
    content = small.read_bytes()
    assembled(small, *taken_apart(small))
    assert small.read_bytes() == content
    assert is_store_file(small)


@pytest.mark.parametrize(
    "lie",
    [
        {"dtype": "uint8"},
        {"dtype": "object"},
        {"dtype": ["int16"]},
        {"shape": [8, 8]},
        {"shape": [8, 8, 0]},
        {"shape": [8, 8, -8]},
        {"shape": [8, 8, 10**400]},
        {"shape": [32, 32, 2**31]},
        {"shape": [2**12, 2**12, 2**12]},
        {"shape": [8, 8, 8, 10**6]},
        {"shape": "888"},
        {"places": -1},
        {"places": 1e999},
        {"places": 2},
        {"info": None},
        {"info": {"modality": "mri", "affine": [[1, 0], [0, 1]]}},
        {"info": {"modality": "mri", "affine": [[float("nan")] * 4] * 4}},
        {"info": {"modality": "mri", "affine": np.zeros((4, 4)).tolist()}},
        {"info": {"modality": "mri", "affine": np.eye(4).tolist(), "bounds": [1, 1]}},
        {"info": {"modality": "mri", "affine": np.eye(4).tolist(), "source_shape": [10**6] * 3}},
        {"info": {"modality": "mri", "affine": np.eye(4).tolist(), "settings": [[]]}},
    ],
)
def test_a_head_whose_numbers_cannot_be_is_damaged(small, lie):
    described, chunks, places = taken_apart(small)
    assembled(small, described | lie, chunks, places)
    with pytest.raises(DamagedVolume, match="damaged"):
        StoredVolume(small).read()


def test_a_place_beyond_the_volume_and_a_head_without_end_are_damage(small):
    described, chunks, _ = taken_apart(small)
    assembled(small, described, chunks, np.array([[1, 8, 3]], "<i2").tobytes())
    with pytest.raises(DamagedVolume, match="damaged"):
        StoredVolume(small)
    with small.open("wb") as file:
        file.write(START.pack(MAGIC, 2**32 - 1, 0))
        file.truncate(2**33)
    with pytest.raises(DamagedVolume, match="damaged"):
        StoredVolume(small)


def test_a_file_cut_off_while_it_is_open_is_damaged(small):
    volume = StoredVolume(small)
    volume.read()
    os.truncate(small, START.size)
    with pytest.raises(DamagedVolume, match="chunk 0"):
        volume.read()


def test_a_disk_that_does_not_answer_is_damage(small, monkeypatch):
    volume = StoredVolume(small)

    def fails(*arguments):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(DamagedVolume, match="unreadable: Stale file handle"):
        volume.read()


def test_a_pipe_and_a_folder_are_damage_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.vxw")
    (tmp_path / "folder.vxw").mkdir()
    for name in ("pipe.vxw", "folder.vxw"):
        with pytest.raises(DamagedVolume):
            StoredVolume(tmp_path / name)


changes = st.lists(st.tuples(st.integers(0, 70), st.integers(0, 255)), min_size=1, max_size=4)
numbers = st.sampled_from([0, -1, 3, 8, 9, 2**31, 10**30, 1e999, "8", None, True, [], [8, 8, 8], {}])


@settings(deadline=None, max_examples=120)
@given(changes=changes, key=st.sampled_from(["dtype", "shape", "places", "info", "format_version", ""]), number=numbers)
def test_whatever_a_file_holds_is_a_volume_or_a_refusal(tmp_path_factory, changes, key, number):
    path = tmp_path_factory.mktemp("store") / "a.vxw"
    write_stored(path, np.arange(512, dtype=np.int16).reshape(8, 8, 8), INFO)
    described, (chunk,), places = taken_apart(path)
    content = bytearray(chunk)
    for place, value in changes:
        content[place % len(content)] = value
    assembled(path, described | ({key: number} if key else {}), [bytes(content)], places)
    with suppress(UnusableVolume):
        assert StoredVolume(path).read().shape == (8, 8, 8)
