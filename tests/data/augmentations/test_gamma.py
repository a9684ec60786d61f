"""Gamma against NumPy, and where it must not move anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.data.augmentations.gamma import RandomGamma, apply_gamma
from voxelwave.ops.seeding import torch_generator


@given(st.tuples(*[st.integers(1, 5)] * 5), st.integers(0, 2**16))
def test_gamma_is_a_power_of_each_sample_that_keeps_the_sign(shape, seed):
    generator = torch_generator(seed)
    volume, gamma = torch.randn(shape, generator=generator), 0.5 + torch.rand(shape[0], generator=generator)
    values = volume.double().numpy()
    expected = np.sign(values) * np.abs(values) ** gamma.double().numpy()[:, None, None, None, None]
    assert np.allclose(apply_gamma(volume, gamma).numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_air_and_the_brightest_stay_and_order_too(dtype):
    values = torch.linspace(-1.2, 1.2, 241).to(dtype)
    values[20], values[120], values[220] = -1, 0, 1
    changed = apply_gamma(values.expand(8, 1, 1, 1, -1), RandomGamma(log_gamma=1.0).draw(8, torch_generator(0)))
    assert changed.dtype == dtype
    assert bool((changed.diff(dim=-1) >= 0).all())
    assert torch.equal(changed[..., [20, 120, 220]], torch.tensor([-1, 0, 1], dtype=dtype).expand(8, 1, 1, 1, 3))


def test_the_exponent_is_not_rounded_to_the_precision_of_the_volume():
    volume, gamma = torch.full((1, 1, 1, 1, 1), 2.0**-64, dtype=torch.bfloat16), torch.tensor([1.003])
    assert float(apply_gamma(volume, gamma)) == pytest.approx(2.0 ** (-64 * 1.003), rel=2**-8)


def test_exponents_are_as_often_above_as_below_1_and_within_the_range():
    logarithm = RandomGamma(log_gamma=0.3).draw(4000, torch_generator(0)).log()
    assert float(logarithm.abs().max()) <= 0.3 + 1e-6
    assert float(logarithm.mean()) == pytest.approx(0, abs=0.01)
    assert float(logarithm.std()) == pytest.approx(0.3 / 3**0.5, rel=0.03)


def test_a_random_gamma_is_its_twin_at_the_drawn_exponents():
    volume, random = torch.rand(3, 2, 3, 4, 5, generator=torch_generator(0)), RandomGamma()
    assert torch.equal(random(volume, torch_generator(1)), apply_gamma(volume, random.draw(3, torch_generator(1))))


def test_without_log_gamma_the_volume_stays_as_it_is():
    volume = torch.rand(2, 1, 9, 9, 9, generator=torch_generator(0))
    assert torch.equal(RandomGamma(log_gamma=0.0)(volume, torch_generator(1)), volume)


@pytest.mark.parametrize("log_gamma", [-0.1, float("nan"), float("inf")])
def test_an_impossible_range_is_refused(log_gamma):
    with pytest.raises(ValueError, match=r"at least 0 \(contrast stays\), got"):
        RandomGamma(log_gamma=log_gamma)
