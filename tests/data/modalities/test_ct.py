"""CT windows against their formula, and the three layouts on disk against each other."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import zoom

from voxelwave.data.modalities.ct import CT
from voxelwave.errors import UnusableVolume
from voxelwave.physics.heads3d import draw_head, render_ct

WINDOWS_HU = ((40, 80), (80, 200), (600, 2800))


def hounsfield(shape=(5, 6, 7), seed=0):
    return np.random.default_rng(seed).uniform(-1000, 2200, shape).astype(np.float32)


def test_windows_follow_the_formula_at_and_around_their_edges():
    edges = [level + side * width / 2 + off for level, width in WINDOWS_HU for side in (-1, 0, 1) for off in (-1, 0, 1)]
    array = np.array([-1024.0, 3071.0, *edges], dtype=np.float32).reshape(-1, 1, 1)
    for channel, (level, width) in zip(CT()(array), WINDOWS_HU, strict=True):
        for value, scaled in zip(array.ravel(), channel.ravel(), strict=True):
            expected = min(max((value - (level - width / 2)) / width, 0.0), 1.0)
            assert scaled == pytest.approx(expected, abs=1e-6)


def test_the_three_layouts_of_one_head_are_bit_equal():
    raw = hounsfield()
    from_raw = CT()(raw)
    last = np.moveaxis(from_raw, 0, -1)
    assert from_raw.dtype == np.float32
    assert from_raw.shape == (3, 5, 6, 7)
    assert np.array_equal(CT()(last), from_raw)
    assert np.array_equal(CT()(last[:, :, :, None, :]), from_raw)


def test_eight_bit_windows_are_divided_by_255():
    stored = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    assert np.array_equal(CT()(stored), np.moveaxis(stored, -1, 0).astype(np.float32) / np.float32(255))


def test_a_missing_value_becomes_zero_and_an_infinite_one_the_nearest_end():
    raw = hounsfield()
    raw[0, 0, 0], raw[0, 0, 1], raw[0, 0, 2] = np.nan, np.inf, -np.inf
    volume = CT()(raw)
    assert volume[:, 0, 0, :3].tolist() == [[0, 1, 0]] * 3


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (hounsfield() + 1024, "not in Hounsfield units"),
        (hounsfield() / 1000 * np.pi, "not in Hounsfield units"),
        (np.zeros((4, 4, 4)), "every value is 0"),
        (np.full((4, 4, 4), np.nan), "no value is a number"),
        (np.where(np.indices((4, 4, 4))[0] > 1, np.inf, -np.inf), "no value is finite"),
        (np.linspace(-1, 1, 192).reshape(4, 4, 4, 3), "-1 to 1"),
        (np.linspace(0, 300, 192).reshape(4, 4, 4, 3), "0 to 300"),
        (np.zeros((4, 4, 4, 2)), r"\(4, 4, 4, 2\)"),
        (np.zeros((4, 4, 4, 2, 3)), r"\(4, 4, 4, 2, 3\)"),
    ],
)
def test_what_is_no_ct_is_refused_with_the_reason(array, reason):
    with pytest.raises(UnusableVolume, match=reason):
        CT()(array)


def test_the_input_is_left_as_it_was():
    raw = hounsfield()
    before = raw.copy()
    CT()(raw)
    assert np.array_equal(raw, before)


def test_values_in_another_unit_are_not_rounded_away():
    array = np.random.default_rng(0).uniform(0, 1, (9, 9, 9)).astype(np.float32)
    taken = CT(windows_hu=((0.5, 1), (0.5, 0.5), (0.2, 0.4)), require_hu=False)
    packed = taken.pack(array, taken.bounds(array))
    assert np.allclose(taken.scale(packed.array, packed.bounds), taken(array), atol=1.5e-3)


@cache
def head(seed):
    generator = np.random.default_rng(seed)
    return render_ct(draw_head(generator, size=48), generator).astype(np.float32)


def with_corners(array, value):
    """Put `value` where a round field of view ends."""
    first, second = np.meshgrid(*(np.linspace(-1, 1, side) for side in array.shape[:2]), indexing="ij")
    return np.where((first**2 + second**2 > 1)[:, :, None], np.float32(value), array)


CHANGES = {
    "as it is": lambda array: array,
    "padding": lambda array: with_corners(array, -2000),
    "padding far below": lambda array: with_corners(array, -32768),
    "interpolated": lambda array: zoom(array, 0.7, order=3),
    "cropped to the brain": lambda array: array[8:40, 8:40, 20:36],
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("change", CHANGES)
def test_hounsfield_units_are_told_by_most_voxels_and_not_by_the_lowest_one(change, seed):
    changed = CHANGES[change]
    CT().bounds(changed(head(seed)))
    with pytest.raises(UnusableVolume, match=r"not in Hounsfield units: .* prepare with --hu-offset -1024"):
        CT().bounds(changed(head(seed) + 1024))


def few_negative(seed, values, lowest):
    """Values of another unit with a few voxels below 0."""
    array = np.random.default_rng(seed).uniform(*values, (32, 32, 32)).astype(np.float32)
    array[:8] = max(values[0], 0)
    array.reshape(-1)[:5] = lowest
    return array


@pytest.mark.parametrize(
    "array",
    [
        few_negative(0, (0, 817), -1),
        few_negative(0, (0, 817), -400),
        few_negative(1, (0, 255), -3),
        few_negative(2, (31700, 34000), -5),
        np.random.default_rng(3).uniform(0, 900, (16, 16, 16)).astype(np.float32) - 2,
    ],
    ids=["one voxel", "one voxel far below", "8 bits", "32768 too high", "MRI shifted by 2"],
)
def test_a_few_voxels_below_0_make_no_hounsfield_units(array):
    with pytest.raises(UnusableVolume, match="not in Hounsfield units"):
        CT().bounds(array)


def test_a_brain_alone_may_hold_hardly_anything_below_0():
    brain = np.zeros((32, 32, 32), dtype=np.float32)
    brain[8:24, 8:24, 8:24] = np.random.default_rng(0).normal(35, 6, (16, 16, 16))
    brain[8, 8, 8] = -4
    CT().bounds(brain)


def test_padding_that_was_raised_with_all_else_hides_no_offset():
    with pytest.raises(UnusableVolume, match="--hu-offset"):
        CT().bounds(with_corners(head(0), -1500) + 1024)
    CT().bounds(with_corners(head(0), -1500))
