"""fastMRI's masks against values of the package `fastmri` 0.3.0 (MIT)."""

import hashlib

import numpy as np
import pytest
import torch

from voxelwave.physics.sampled_lines import num_center_lines
from voxelwave.physics.samplings.fastmri import FastMRILines

# SHA-256, first 16 digits, of 100 masks of create_mask_for_mask_type(kind, …), each packed to bits.
GOLDEN = {
    "random": "926f62a7f6b8b646",
    "equispaced": "47ab5d259b0fcd2e",
    "equispaced_fraction": "b09873dc4a5e522a",
    "magic": "e978638d00f51768",
    "magic_fraction": "6af647cdba1d98dd",
}
PAIRS = [((4,), (0.08,)), ((8,), (0.04,)), ((8,), (0.08,)), ((4, 8), (0.08, 0.04)), ((6,), (0.05,))]


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_hundred_widths_and_seeds_give_the_masks_of_fastmri_bit_for_bit(kind):
    digest = hashlib.sha256()
    for number in range(100):
        width, (rates, fractions) = 64 + (37 * number) % 400, PAIRS[number % 5]
        sampling = FastMRILines(kind=kind, acceleration=rates, center_fraction=fractions)
        if number % 2:
            lines = sampling.of_file((1, width), f"file{1000000 + number}.h5")[0].numpy()
        else:
            lines = sampling.lines(width, np.random.RandomState(7 * number))
        digest.update(np.packbits(lines).tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[kind]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("random", [4, 9, 10, 14, 22, 23, 24, 25, 28, 29, 32, 35, 41]),
        ("equispaced_fraction", [1, 6, 12, 18, 22, 23, 24, 25, 28, 34, 40, 45]),
    ],
)
def test_a_file_of_validation_always_has_the_same_lines(kind, expected):
    sampled = FastMRILines(kind=kind).of_file((5, 48), "file1000000.h5")
    assert sampled.shape == (5, 48)
    assert [row.nonzero()[:, 0].tolist() for row in sampled] == [expected] * 5


@pytest.mark.parametrize("acceleration", [4, 6, 8])
def test_magic_lines_lie_between_those_that_mirroring_would_put_there(acceleration):
    """Real images have mirrored k-spaces: a line whose mirror image is measured, too, tells little more."""
    for seed in range(12):
        lines = FastMRILines(kind="magic", acceleration=acceleration, center_fraction=0.01).lines(
            120, np.random.RandomState(seed)
        )
        frequency = np.flatnonzero(lines) - 60
        outer = {int(value) for value in frequency if value not in (0, -1)}
        assert not any(-value in outer for value in outer)


def test_magic_fraction_counts_come_near_what_is_asked_for():
    sampling = FastMRILines(kind="magic_fraction", acceleration=4.0, center_fraction=0.08)
    counts = [int(sampling.lines(368, np.random.RandomState(seed)).sum()) for seed in range(20)]
    assert np.mean(counts) == pytest.approx(92, rel=0.1)


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_centre_that_rounding_makes_all_there_is_stands_alone(kind):
    # round(0.125 · 60) = 8 exceeds 60 / 8.
    lines = FastMRILines(kind=kind, acceleration=8.0, center_fraction=0.125).lines(60, np.random.RandomState(0))
    if kind.endswith("fraction") or kind == "random":
        assert lines.sum() == 8
    assert num_center_lines(torch.from_numpy(lines)) == 8


def test_settings_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="as many accelerations as centre fractions"):
        FastMRILines(acceleration=(4.0, 8.0))
    with pytest.raises(ValueError, match=r"must be a whole number for kind 'magic', got 3\.7"):
        FastMRILines(kind="magic", acceleration=3.7)
