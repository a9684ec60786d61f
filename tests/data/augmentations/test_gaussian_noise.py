"""White noise: its distribution, and where it is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxelwave.data.augmentations.noise import GaussianNoise, add_noise
from voxelwave.ops.seeding import torch_generator


def test_noise_is_added_without_clipping():
    volume, noise = torch.rand(2, 3, 3, 4, 5), torch.randn(2, 3, 3, 4, 5)
    assert np.array_equal(add_noise(volume, noise).numpy(), volume.numpy() + noise.numpy())
    assert add_noise(torch.zeros_like(volume), noise).min() < 0


def test_noise_is_white_and_normal_with_the_standard_deviation_asked_for():
    noise = GaussianNoise(std=0.02).draw(torch.zeros(2, 2, 32, 32, 32), torch_generator(0)).double()
    assert float(noise.mean()) == pytest.approx(0, abs=3e-4)
    assert float(noise.std()) == pytest.approx(0.02, rel=0.02)
    assert float(noise.pow(4).mean() / noise.pow(2).mean() ** 2) == pytest.approx(3, rel=0.03)
    for axis in range(1, 5):
        neighbours = (noise * noise.roll(1, axis)).mean() / noise.pow(2).mean()
        assert float(neighbours) == pytest.approx(0, abs=0.01)


def test_the_random_noise_is_its_twin_at_the_drawn_noise():
    volume, random = torch.rand(2, 1, 3, 4, 5, generator=torch_generator(0)), GaussianNoise(std=0.3)
    drawn = random.draw(volume, torch_generator(1))
    assert torch.equal(random(volume, torch_generator(1)), add_noise(volume, drawn))


def test_without_std_the_volume_stays_as_it_is():
    volume = torch.rand(2, 1, 3, 4, 5, generator=torch_generator(0))
    assert torch.equal(GaussianNoise(std=0.0)(volume, torch_generator(1)), volume)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_for_cuda_is_drawn_there_and_differs_from_step_to_step():
    random, volume, generator = GaussianNoise(std=1.0), torch.zeros(1, 1, 32, 32, 32, device="cuda"), torch_generator(0)
    first, second = random.draw(volume, generator), random.draw(volume, generator)
    assert first.device.type == "cuda"
    assert float(first.std()) == pytest.approx(1, rel=0.05)
    assert float((first * second).mean()) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf")])
def test_an_impossible_std_is_refused(std):
    with pytest.raises(ValueError, match=r"at least 0 \(no noise\), got"):
        GaussianNoise(std=std)
