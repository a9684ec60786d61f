"""Quarter turns against NumPy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxelwave.data.augmentations.rotate90 import RandomRotate90, rotate90
from voxelwave.ops.seeding import torch_generator

PLANES = list(combinations(range(3), 2))


def test_rotate90_is_numpy_rot90_of_each_sample():
    volume = torch.rand(12, 2, 4, 4, 4, generator=torch_generator(0))
    cases = [(turns, plane) for turns in range(4) for plane in PLANES]
    turned = rotate90(volume, torch.tensor([turns for turns, _ in cases]), torch.tensor([plane for _, plane in cases]))
    for before, after, (turns, plane) in zip(volume.numpy(), turned.numpy(), cases, strict=True):
        assert np.array_equal(after, np.rot90(before, turns, [axis + 1 for axis in plane]))


@given(st.tuples(*[st.integers(1, 4)] * 3), st.integers(0, 2**16))
def test_rotations_fit_every_shape_and_four_are_none(sides, seed):
    volume, random = torch.rand(3, 2, *sides, generator=torch_generator(0)), RandomRotate90(probability=1.0)
    turns, planes = random.draw(3, sides, torch_generator(seed))
    turned = rotate90(volume, turns, planes)
    assert turned.shape == volume.shape
    assert torch.equal(turned, random(volume, torch_generator(seed)))
    assert torch.equal(turned.flatten(1).sort(1).values, volume.flatten(1).sort(1).values)
    assert torch.equal(rotate90(turned, 4 - turns, planes), volume)


def test_only_planes_with_equal_sides_are_turned():
    random = RandomRotate90(probability=1.0)
    turns, planes = random.draw(50, (4, 5, 4), torch_generator(0))
    assert planes.unique(dim=0).tolist() == [[0, 2]]
    assert turns.unique().tolist() == [1, 2, 3]
    assert random.draw(50, (4, 5, 6), torch_generator(0))[0].any().item() is False


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_turns_and_planes_come_as_often_as_asked(probability):
    turns, planes = RandomRotate90(probability=probability).draw(6000, (4, 4, 4), torch_generator(0))
    shares = [float((turns == number).float().mean()) for number in range(4)]
    assert shares == pytest.approx([1 - probability, *[probability / 3] * 3], abs=0.03)
    assert [planes.tolist().count(list(plane)) / 6000 for plane in PLANES] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_without_probability_nothing_turns():
    volume = torch.rand(3, 2, 4, 4, 4, generator=torch_generator(0))
    assert torch.equal(RandomRotate90(probability=0.0)(volume, torch_generator(1)), volume)


def test_a_turn_that_would_change_the_shape_is_refused():
    volume, plane = torch.rand(1, 1, 4, 5, 4), torch.tensor([[0, 1]])
    assert torch.equal(rotate90(volume, torch.tensor([2]), plane), volume.flip([2, 3]))
    with pytest.raises(ValueError, match="1 quarter turns of a plane of 4 by 5 voxels"):
        rotate90(volume, torch.tensor([1]), plane)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_an_impossible_probability_is_refused(probability):
    with pytest.raises(ValueError, match=r"between 0 \(never\) and 1 \(always\), got"):
        RandomRotate90(probability=probability)
