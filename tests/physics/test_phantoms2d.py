from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.phantoms2d import DEVIATION, MEAN, draw_phantoms, draw_phases, equalised

SIZE = 64


def generators(count, start=0):
    return [torch_generator(0, "phantom", index) for index in range(start, start + count)]


@pytest.fixture(scope="module")
def phantoms():
    return draw_phantoms(generators(60), size=SIZE)


def test_neither_mean_nor_deviation_tells_phantoms_apart(phantoms):
    assert phantoms.shape == (60, SIZE, SIZE)
    assert torch.allclose(phantoms.mean((1, 2)), torch.tensor(MEAN), rtol=1e-5)
    assert torch.allclose(phantoms.std((1, 2), correction=0), torch.tensor(DEVIATION), rtol=1e-4)


def test_a_phantom_is_the_same_in_every_batch(phantoms):
    assert torch.allclose(draw_phantoms(generators(7, start=20), size=SIZE), phantoms[20:27], atol=1e-5)
    # Which others are drawn with a phantom depends on what is kept of them: not a bit may.
    for size in (33, 43, 67, 130):
        together = draw_phantoms(generators(5), size=size)
        alone = torch.cat([draw_phantoms([one], size=size) for one in generators(5)])
        assert torch.equal(together, alone)
    assert draw_phantoms([], size=SIZE).shape == (0, SIZE, SIZE)


def test_more_phantoms_than_are_rendered_at_once_are_the_same(phantoms, monkeypatch):
    monkeypatch.setattr("voxelwave.physics.phantoms2d.CHUNK_PIXELS", 4 * SIZE**2)
    assert torch.allclose(draw_phantoms(generators(10), size=SIZE), phantoms[:10], atol=1e-5)


def test_a_head_lies_in_air_and_no_magnitude_is_negative(phantoms):
    assert bool(phantoms.isfinite().all())
    assert float(phantoms.min()) >= 0
    border = torch.cat([phantoms[:, 0], phantoms[:, -1], phantoms[:, :, 0], phantoms[:, :, -1]], 1)
    assert float(border.max()) < 1e-3
    head = (phantoms > 1e-3).float().mean((1, 2))
    assert 0.45 < float(head.min()) < float(head.max()) < 0.65


def test_outlines_and_what_is_inside_differ_from_phantom_to_phantom(phantoms):
    # A disc that lies in every brain, and in it what is left without the mean: folds, ventricles, nuclei, lesions.
    axis = torch.linspace(-1, 1, SIZE)
    disc = torch.hypot(axis, axis[:, None]) < 0.55
    inside = F.normalize(phantoms[:, disc] - phantoms[:, disc].mean(1, keepdim=True))
    alike = inside @ inside.T - torch.eye(len(phantoms))
    assert float(alike.max()) < 0.8
    heads = (phantoms[:20] > 1e-3).float()
    for first, second in itertools.combinations(heads, 2):
        assert 2 * (first * second).sum() / (first + second).sum() < 0.985


def test_the_size_is_a_resolution_and_not_another_head(phantoms):
    fine = F.avg_pool2d(draw_phantoms(generators(6), size=2 * SIZE), 2)
    pairs = torch.stack([fine.flatten(1), phantoms[:6].flatten(1)], 1)
    assert min(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) > 0.93


def test_the_power_is_that_which_a_search_finds():
    images = torch.rand((6, 20, 20), generator=torch_generator(1)) * torch.tensor([0.1, 1, 5]).repeat(2)[:, None, None]
    images[:, :9] = 0
    images[3:] **= 1.5
    for image, found in zip(images.double().numpy(), equalised(images).numpy(), strict=True):
        positive = image[image > 0]

        def excess(log_power, positive=positive, count=image.size):
            values = positive ** np.exp(log_power)
            return (values**2).sum() * count / values.sum() ** 2 - 1 - (DEVIATION / MEAN) ** 2

        expected = image ** np.exp(brentq(excess, -6, 3))
        assert np.allclose(found, expected * MEAN / expected.mean(), atol=1e-4)


def test_phases_are_smooth_and_differ():
    phases = draw_phases(generators(30), size=SIZE)
    assert phases.shape == (30, SIZE, SIZE)
    steps = torch.cat([phases.diff(dim=1).flatten(), phases.diff(dim=2).flatten()]).abs()
    assert float(steps.max()) < 0.3
    assert float((phases.amax((1, 2)) - phases.amin((1, 2))).min()) > 0.3
    assert len(phases[:, 0, 0].unique()) == 30
    assert torch.allclose(draw_phases(generators(2, start=4), size=SIZE), phases[4:6], atol=1e-5)


@pytest.mark.parametrize("size", [15, 0, -3])
def test_an_image_too_small_for_a_head_is_refused(size):
    with pytest.raises(ValueError, match=f"at least 16 pixels .* got {size}"):
        draw_phantoms(generators(1), size=size)


@pytest.mark.parametrize("size", [16, 17])
def test_the_smallest_phantoms_are_equalised_as_well(size):
    phantoms = draw_phantoms(generators(40), size=size)
    assert torch.allclose(phantoms.mean((1, 2)), torch.tensor(MEAN), rtol=1e-5)
    assert torch.allclose(phantoms.std((1, 2), correction=0), torch.tensor(DEVIATION), rtol=1e-4)
