"""The bias field against its formula in plain loops, and what makes it a bias field."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import eval_legendre

from voxelwave.data.augmentations.bias_field import RandomBiasField, apply_bias_field, bias_field
from voxelwave.ops.seeding import torch_generator


def formula(coefficients, sides):
    z, y, x = np.meshgrid(*((2 * np.arange(side) + 1 - side) / side for side in sides), indexing="ij")
    logarithm = np.zeros(sides)
    for (i, j, k), coefficient in np.ndenumerate(coefficients):
        logarithm += coefficient * eval_legendre(i, z) * eval_legendre(j, y) * eval_legendre(k, x)
    return np.exp(logarithm)


@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 4), st.integers(0, 2**16))
def test_the_field_is_its_formula(sides, order, seed):
    coefficients = torch.randn(2, order + 1, order + 1, order + 1, generator=torch_generator(seed)).double() * 0.2
    fields = bias_field(coefficients, *sides).numpy()
    assert np.allclose(fields, [formula(sample.numpy(), sides) for sample in coefficients], rtol=1e-12)


def test_all_channels_of_a_sample_are_multiplied_by_the_field_and_zero_stays_zero():
    volume = torch.rand(2, 3, 4, 5, 6, generator=torch_generator(0)) - 0.2
    volume[volume < 0] = 0
    coefficients = RandomBiasField(strength=0.5).draw(2, torch_generator(1))
    expected = volume.numpy() * np.stack([formula(sample.numpy(), (4, 5, 6)) for sample in coefficients])[:, None]
    changed = apply_bias_field(volume, coefficients)
    assert np.allclose(changed.numpy(), expected, rtol=1e-5, atol=0)
    assert torch.equal(changed == 0, volume == 0)


def test_a_random_field_is_its_twin_at_the_drawn_coefficients():
    volume, random = torch.rand(3, 1, 4, 5, 6, generator=torch_generator(0)), RandomBiasField()
    expected = apply_bias_field(volume, random.draw(3, torch_generator(1)))
    assert torch.equal(random(volume, torch_generator(1)), expected)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_total_degree_is_bounded_and_the_brightness_stays(order):
    coefficients = RandomBiasField(order=order).draw(2, torch_generator(0))
    assert coefficients.shape == (2, order + 1, order + 1, order + 1)
    for degrees in np.ndindex(coefficients.shape[1:]):
        assert bool((coefficients[(slice(None), *degrees)] != 0).all()) == (0 < sum(degrees) <= order)


@pytest.mark.parametrize(("strength", "order"), [(0.05, 1), (0.15, 3), (0.3, 4)])
def test_fields_have_the_strength_asked_for_around_1(strength, order):
    coefficients = RandomBiasField(strength=strength, order=order).draw(400, torch_generator(0))
    logarithm = bias_field(coefficients, 24, 24, 24).log()
    assert float(logarithm.std()) == pytest.approx(strength, rel=0.05)
    assert float(logarithm.mean((1, 2, 3)).abs().max()) < 0.02 * strength
    mean = bias_field(RandomBiasField().draw(400, torch_generator(1)), 16, 16, 16).mean((1, 2, 3))
    assert float((mean - 1).abs().max()) < 0.15
    assert float(mean.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_fields_are_smooth(axis):
    coefficients = RandomBiasField(order=3).draw(4, torch_generator(0)).double()
    differences = bias_field(coefficients, 20, 24, 28).log()
    assert float(differences.diff(dim=axis).abs().max()) < 0.2
    # The fourth differences of a cubic polynomial are 0 everywhere.
    assert float(differences.diff(n=4, dim=axis).abs().max()) < 1e-12


def test_without_strength_the_volume_stays_as_it_is():
    volume = torch.rand(2, 1, 3, 4, 5, generator=torch_generator(0))
    assert torch.equal(RandomBiasField(strength=0.0)(volume, torch_generator(1)), volume)


@pytest.mark.parametrize("settings", [{"strength": -0.1}, {"strength": float("nan")}, {"order": 0}])
def test_impossible_fields_are_refused(settings):
    with pytest.raises(ValueError, match=r"of a bias field is .* got"):
        RandomBiasField(**settings)
