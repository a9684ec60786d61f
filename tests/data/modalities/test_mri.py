"""MRI scaling against NumPy percentiles of a known foreground."""

from __future__ import annotations

import numpy as np
import pytest

from voxelwave.data.modalities.mri import MRI
from voxelwave.data.recognition.rules import Told, contradiction, modality_by_content
from voxelwave.errors import UnusableVolume


def head(shape=(24, 25, 26)):
    """Tissue of 200 to 1000 in a ball, zeros around it."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    tissue = np.random.default_rng(0).uniform(200, 1000, shape)
    return np.where((grid**2).sum(0) < 0.7, tissue, 0).astype(np.float32)


def test_percentiles_are_those_of_the_foreground_alone():
    array = head()
    low, high = np.percentile(array[array > 0], (0.5, 99.5))
    expected = np.clip((array - low) / (high - low), 0, 1)
    assert np.allclose(MRI()(array)[0], expected, atol=1e-5)


def test_scaling_does_not_depend_on_the_unit_of_the_scanner():
    assert np.allclose(MRI()(head() * 37 + 5), MRI()(head()), atol=1e-4)


def test_large_volumes_are_scaled_like_small_ones():
    tiled = np.tile(head(), (4, 4, 4))
    assert np.allclose(MRI()(tiled)[0, :24, :25, :26], MRI()(head())[0], atol=0.01)


def test_trailing_axes_of_length_one_are_dropped():
    assert np.array_equal(MRI()(head()[..., None, None]), MRI()(head()))


def test_a_single_spike_does_not_flatten_the_tissue():
    array = head()
    array[0, 0, 0] = 1e6
    assert np.allclose(MRI()(array)[0, 1:], MRI()(head())[0, 1:], atol=0.01)


def test_a_tiny_foreground_is_still_seen():
    array = np.zeros((40, 40, 40), dtype=np.float32)
    array[20, 20, 20:22] = 7
    assert MRI()(array).sum() == 2


def test_missing_values_become_background_and_infinities_the_nearest_end():
    array = head()
    array[12, 12, 12], array[12, 12, 13], array[12, 12, 14] = np.nan, np.inf, -np.inf
    volume = MRI()(array)
    assert volume[0, 12, 12, 12:15].tolist() == [0, 1, 0]
    assert np.isfinite(volume).all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((9, 9, 9)), "every value is 0"),
        (np.full((9, 9, 9), 3.5), "every value is 3.5"),
        (np.full((9, 9, 9), np.nan), "no value is a number"),
        (np.ones((9, 9, 9, 2)), r"\(9, 9, 9, 2\)"),
    ],
)
def test_what_shows_nothing_is_refused_with_the_reason(array, reason):
    with pytest.raises(UnusableVolume, match=reason):
        MRI()(array)


@pytest.mark.parametrize("padding", [-32768, -3.4e38, -5000])
def test_a_value_far_below_all_others_is_no_part_of_the_image(padding):
    generator = np.random.default_rng(0)
    image = np.where(generator.random((16, 16, 16)) < 0.5, generator.normal(600, 100, (16, 16, 16)), 0).clip(0)
    padded = image.astype(np.float32)
    padded[:4] = padding
    assert MRI().bounds(padded) == MRI().bounds(image[4:])
    assert MRI()(padded)[:, :4].max() == 0
    assert modality_by_content(padded).modality is None
    assert contradiction(Told("mri", "its name"), padded) is None
