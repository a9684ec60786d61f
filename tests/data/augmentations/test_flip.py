"""Mirror images against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.data.augmentations.flip import RandomFlip, flip
from voxelwave.ops.seeding import torch_generator


@given(st.tuples(*[st.integers(1, 5)] * 5), st.integers(0, 2**16))
def test_flip_is_numpy_flip_of_each_sample(shape, seed):
    generator = torch_generator(seed)
    volume, flipped = torch.rand(shape, generator=generator), torch.rand(shape[0], 3, generator=generator) < 0.5
    expected = [
        np.flip(sample, [axis + 1 for axis in range(3) if axes[axis]])
        for sample, axes in zip(volume.numpy(), flipped.tolist(), strict=True)
    ]
    assert np.array_equal(flip(volume, flipped).numpy(), expected)
    assert torch.equal(flip(flip(volume, flipped), flipped), volume)


def test_a_random_flip_is_its_twin_at_the_drawn_axes():
    volume, random = torch.rand(4, 1, 3, 4, 5, generator=torch_generator(0)), RandomFlip()
    assert torch.equal(random(volume, torch_generator(1)), flip(volume, random.draw(4, torch_generator(1))))


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_each_axis_of_each_sample_flips_as_often_as_asked(probability):
    flipped = RandomFlip(probability=probability).draw(4000, torch_generator(0)).float()
    assert flipped.mean(0).tolist() == pytest.approx([probability] * 3, abs=0.03)
    if 0 < probability < 1:
        assert np.abs(np.corrcoef(flipped.T.numpy()) - np.eye(3)).max() < 0.06


def test_only_the_axes_that_may_flip_do_and_the_others_change_no_draw():
    left_right = RandomFlip(axes=(0,)).draw(100, torch_generator(0))
    assert not left_right[:, 1:].any()
    assert torch.equal(left_right[:, 0], RandomFlip().draw(100, torch_generator(0))[:, 0])
    with pytest.raises(ValueError, match=r"among 0, 1 and 2, got \[3\]"):
        RandomFlip(axes=(3,))


def test_without_probability_nothing_flips():
    volume = torch.rand(3, 2, 3, 4, 5, generator=torch_generator(0))
    assert torch.equal(RandomFlip(probability=0.0)(volume, torch_generator(1)), volume)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"between 0 \(never\) and 1 \(always\), got"):
        RandomFlip(probability=probability)
