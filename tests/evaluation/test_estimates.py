import numpy as np
import pytest

from voxelwave.evaluation.estimates import estimate, gain


def mean_of(values):
    return lambda rows: float(values[rows].mean())


def test_the_error_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=200)
    found = estimate(mean_of(values), np.arange(200))
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std() / 200**0.5, rel=0.15)


def test_rows_of_one_subject_are_no_further_evidence():
    values = np.random.default_rng(0).normal(size=100)
    once, twice = np.arange(100), np.repeat(np.arange(100), 2)
    assert estimate(mean_of(values.repeat(2)), twice).error == estimate(mean_of(values), once).error
    assert estimate(mean_of(values.repeat(2)), np.arange(200)).error < 0.85 * estimate(mean_of(values), once).error


def test_draws_of_the_same_rows_are_pairs():
    values, groups = np.random.default_rng(0).normal(size=50), np.array([f"s{i % 20}" for i in range(50)])
    ours, theirs = estimate(mean_of(values + 1), groups), estimate(mean_of(values), groups)
    assert gain(ours, theirs).value == pytest.approx(1.0)
    assert gain(ours, theirs).error == pytest.approx(0.0, abs=1e-12)
    assert estimate(mean_of(values), groups, seed=1).error != theirs.error


def test_what_was_measured_once_has_no_error():
    from voxelwave.evaluation.estimates import Estimate

    assert Estimate(3.0).error is None
    assert gain(Estimate(3.0), Estimate(1.0)).error is None
