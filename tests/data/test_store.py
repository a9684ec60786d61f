"""A crop of the store is the slice of the array; damage is found and named."""

from __future__ import annotations

import json

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.data.modalities import DamagedVolume, UnusableVolume
from voxelwave.data.store import StoredInfo, StoredVolume, write_stored

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
    volume = stored(tmp_path_factory.mktemp("store") / "a.b2nd", array)
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
    assert np.array_equal(stored(tmp_path / "a.b2nd", array).read(), array)


def test_what_belongs_to_a_volume_travels_with_it(tmp_path):
    places = np.array([[1, 2, 3], [9, 8, 7]], dtype=np.int16)
    volume = stored(tmp_path / "a.b2nd", np.zeros((10, 10, 10), np.int16), foreground=places)
    assert volume.info.model_copy(update={"checksums": ()}) == INFO
    assert np.array_equal(volume.affine, np.diag([1.0, 2, 3, 1]))
    assert np.array_equal(volume.foreground, places)
    assert [file.name for file in tmp_path.iterdir()] == ["a.b2nd"]


def test_a_damaged_chunk_is_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.b2nd"
    array = np.random.default_rng(0).integers(-900, 900, (100, 70, 70)).astype(np.int16)
    write_stored(path, array, INFO)
    intact = StoredVolume(path)
    chunk = intact._array.schunk.get_chunk(7)
    content = bytearray(path.read_bytes())
    content[content.index(chunk) + len(chunk) // 2] ^= 1
    path.write_bytes(content)
    volume = StoredVolume(path)
    assert np.array_equal(volume.crop((0, 0, 0), (64, 64, 64)), array[:64, :64, :64])
    for _ in range(2):  # a second attempt does not take it for checked
        with pytest.raises(DamagedVolume, match=r"chunk 7 of the store, voxels \[64:100, 64:70, 64:70\], is damaged"):
            volume.crop((60, 60, 60), (10, 10, 10))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_store_cut_off_is_damaged(tmp_path, kept):
    path = tmp_path / "a.b2nd"
    write_stored(path, np.random.default_rng(0).integers(0, 900, (70, 70, 70)).astype(np.int16), INFO)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DamagedVolume, match="damaged or cut off"):
        StoredVolume(path).read()


@settings(deadline=None, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_changes_a_value_unseen(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("store") / "a.b2nd"
    array = np.random.default_rng(0).integers(0, 900, (40, 70, 10)).astype(np.int16)
    write_stored(path, array, INFO)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        read = StoredVolume(path).read()
    except UnusableVolume:
        return
    assert np.array_equal(read, array)


def test_another_array_of_blosc2_and_another_format_version_are_refused(tmp_path):
    foreign = blosc2.asarray(np.zeros((8, 8, 8)), urlpath=str(tmp_path / "b.b2nd"))
    with pytest.raises(DamagedVolume, match="damaged"):
        StoredVolume(tmp_path / "b.b2nd")
    foreign.schunk.vlmeta["voxelwave"] = json.dumps({"format_version": 9, "novelty": True})
    with pytest.raises(UnusableVolume, match="store format 9, this voxelwave reads 1"):
        StoredVolume(tmp_path / "b.b2nd")
    with pytest.raises(DamagedVolume, match="no such file"):
        StoredVolume(tmp_path / "none.b2nd")
