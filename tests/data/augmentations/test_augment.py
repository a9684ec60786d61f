"""The pipeline applies its steps in order, from one generator."""

from __future__ import annotations

import pytest
import torch

from voxelwave.data.augmentations import Augment
from voxelwave.data.augmentations.bias_field import RandomBiasField
from voxelwave.data.augmentations.flip import RandomFlip
from voxelwave.data.augmentations.gamma import RandomGamma
from voxelwave.data.augmentations.noise import GaussianNoise
from voxelwave.data.augmentations.rotate90 import RandomRotate90
from voxelwave.data.augmentations.window_jitter import WindowJitter
from voxelwave.ops.seeding import torch_generator

MOVES_AND_VALUES = (RandomFlip(), RandomRotate90(), WindowJitter(), RandomGamma(), RandomBiasField())


def batch():
    return torch.rand(4, 2, 6, 6, 8, generator=torch_generator(0))


def test_steps_follow_each_other_and_share_the_generator():
    flip, noise = RandomFlip(), GaussianNoise(std=0.1)
    generator = torch_generator(1)
    expected = noise(flip(batch(), generator), generator)
    assert torch.equal(Augment([flip, noise])(batch(), torch_generator(1)), expected)


def test_a_pipeline_can_be_a_step_of_another():
    steps = [RandomFlip(), RandomGamma()]
    nested = Augment([Augment(steps), GaussianNoise()])
    assert torch.equal(
        nested(batch(), torch_generator(1)), Augment([*steps, GaussianNoise()])(batch(), torch_generator(1))
    )


def test_without_steps_the_batch_stays_as_it_is():
    assert torch.equal(Augment([])(batch(), torch_generator(1)), batch())
    assert Augment([])(batch().transpose(2, 4), torch_generator(1)).is_contiguous()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_draws_the_same_parameters():
    augment = Augment(MOVES_AND_VALUES)
    on_cpu, on_cuda = augment(batch(), torch_generator(1)), augment(batch().cuda(), torch_generator(1))
    assert torch.allclose(on_cuda.cpu(), on_cpu, rtol=2e-3, atol=1e-4)
