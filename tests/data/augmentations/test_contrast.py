"""Random contrasts against NumPy's interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.data.augmentations.contrast import RandomContrast, apply_curves
from voxelwave.ops.seeding import torch_generator


@given(st.tuples(*[st.integers(1, 4)] * 5), st.integers(2, 9), st.integers(0, 2**16))
def test_each_channel_of_a_sample_goes_through_its_own_curve(shape, knots, seed):
    generator = torch_generator(seed)
    volume, values = torch.rand(shape, generator=generator), torch.rand(*shape[:2], knots, generator=generator)
    at = np.linspace(0, 1, knots)
    expected = [
        [np.interp(channel, at, curve) for channel, curve in zip(sample, curves, strict=True)]
        for sample, curves in zip(volume.double().numpy(), values.double().numpy(), strict=True)
    ]
    assert np.allclose(apply_curves(volume, values).numpy(), expected, atol=1e-5)


def test_what_lies_beyond_0_and_1_keeps_its_distance():
    volume = torch.tensor([-0.25, 0.0, 1.0, 1.5]).view(1, 1, 1, 1, 4)
    changed = apply_curves(volume, torch.tensor([[[0.5, 0.9, 0.25]]]))
    assert changed.flatten().tolist() == [0.25, 0.5, 0.25, 0.75]


def test_the_share_of_samples_is_changed_the_others_stay_and_so_does_air():
    contrast = RandomContrast(share=0.3)
    volume = torch.rand(2000, 2, 1, 1, 8, generator=torch_generator(0))
    volume[..., 0] = 0
    changed = contrast(volume, torch_generator(1))
    same = torch.isclose(changed, volume, atol=1e-6).flatten(1).all(1)
    assert 0.66 < float(same.float().mean()) < 0.74
    assert bool((changed[..., 0] == 0).all())
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1


def test_a_straight_curve_is_no_change():
    volume = torch.rand(3, 1, 4, 4, 4, generator=torch_generator(0))
    assert torch.allclose(RandomContrast(share=0)(volume, torch_generator(1)), volume, atol=1e-6)


def test_what_is_brighter_is_as_often_brighter_as_darker():
    values = RandomContrast(share=1).draw(4000, 1, torch_generator(0))
    assert float((values[..., 1] > values[..., 2]).float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("settings", "message"), [({"share": 1.1}, "in 0 to 1, got 1.1"), ({"knots": 1}, "two knots")])
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomContrast(**settings)
