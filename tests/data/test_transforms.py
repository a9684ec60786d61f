"""Every random transform equals its deterministic twin; the twins against NumPy and plain facts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxelwave.data import transforms as T
from voxelwave.ops.seeding import torch_generator


def volume(shape=(2, 6, 7, 8)):
    return torch.arange(float(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize("axes", [(), (0,), (2, 1), (0, 1, 2)])
def test_flip_is_numpy_flip(axes):
    expected = np.flip(volume().numpy(), [axis + 1 for axis in axes])
    assert np.array_equal(T.flip(volume(), axes).numpy(), expected)


@pytest.mark.parametrize("plane", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotate90_is_numpy_rot90(turns, plane):
    expected = np.rot90(volume().numpy(), turns, (plane[0] + 1, plane[1] + 1))
    assert np.array_equal(T.rotate90(volume(), turns, plane).numpy(), expected)


def test_resize_is_the_identity_where_the_size_fits():
    assert torch.equal(T.resize(volume(), (6, 7, 8)), volume())


def test_resize_averages_what_a_voxel_covers():
    small = T.resize(volume((1, 4, 4, 4)), (2, 2, 2))
    assert torch.allclose(small, volume((1, 4, 4, 4)).reshape(1, 2, 2, 2, 2, 2, 2).mean((2, 4, 6)))


def test_resize_keeps_a_ramp_a_ramp_where_it_grows_one_axis_and_shrinks_another():
    ramp = torch.linspace(0, 1, 8).expand(1, 4, 8, 8)
    resized = T.resize(ramp, (8, 4, 8))
    assert torch.allclose(resized, torch.linspace(0, 1, 8).expand(1, 8, 4, 8), atol=1e-6)


def test_pad_and_crop_undo_each_other():
    padded = T.pad(volume(), (10, 7, 11))
    assert padded.shape == (2, 10, 7, 11)
    assert padded.sum() == volume().sum()
    assert torch.equal(T.crop(padded, (2, 0, 1), (6, 7, 8)), volume())


def test_fit_keeps_the_proportions():
    ones = T.fit(torch.ones(1, 40, 20, 10), (20, 20, 20))
    assert ones.shape == (1, 20, 20, 20)
    assert [int((ones.amax(other) > 0).sum()) for other in ((0, 2, 3), (0, 1, 3), (0, 1, 2))] == [20, 10, 5]


@pytest.mark.parametrize("seed", range(8))
def test_random_transforms_equal_their_twins(seed):
    cube, key = torch.rand(1, 9, 9, 9, generator=torch_generator(1)), (seed, "test")
    flips, turns, noise = T.RandomFlip(), T.RandomRotate90(), T.GaussianNoise(std=0.3)
    assert torch.equal(flips(cube, torch_generator(*key)), T.flip(cube, flips.draw(torch_generator(*key))))
    drawn = turns.draw((9, 9, 9), torch_generator(*key))
    assert torch.equal(turns(cube, torch_generator(*key)), T.rotate90(cube, *drawn))
    added = noise.draw(cube, torch_generator(*key))
    assert torch.equal(noise(cube, torch_generator(*key)), T.add_noise(cube, added))
    view = T.RandomView(crop_size=(5, 6, 7))
    assert torch.equal(view(cube, torch_generator(*key)), T.crop(cube, *view.draw(cube, torch_generator(*key))))
    part = T.RandomView(crop_size=(6, 6, 6), view_share=(0.5, 1.0))
    expected = T.fit(T.crop(cube, *part.draw(cube, torch_generator(*key))), (6, 6, 6))
    assert torch.equal(part(cube, torch_generator(*key)), expected)


def test_only_planes_with_equal_sides_are_rotated():
    generator, turns = torch_generator(0), T.RandomRotate90(probability=1.0)
    assert {turns.draw((4, 5, 4), generator)[1] for _ in range(20)} == {(0, 2)}
    assert {turns.draw((4, 5, 6), generator)[0] for _ in range(20)} == {0}


def test_transforms_happen_as_often_as_asked():
    generator = torch_generator(0)
    flips = [T.RandomFlip(probability=0.5).draw(generator) for _ in range(600)]
    assert [sum(axis in axes for axes in flips) / 600 for axis in range(3)] == pytest.approx([0.5] * 3, abs=0.07)
    turned = [T.RandomRotate90(probability=0.5).draw((4, 4, 4), generator)[0] for _ in range(600)]
    assert [turned.count(turns) / 600 for turns in range(4)] == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.07)


def test_noise_has_the_standard_deviation_asked_for():
    assert float(T.GaussianNoise(std=0.01)(torch.zeros(1, 32, 32, 32), torch_generator(0)).std()) == pytest.approx(
        0.01, rel=0.02
    )


def test_flips_and_rotations_only_move_voxels():
    augment = T.Augment(crop_size=(6, 6, 6), noise_std=0.0)
    for seed in range(10):
        moved = augment(volume((1, 6, 6, 6)), torch_generator(seed))
        assert torch.equal(moved.flatten().sort().values, volume((1, 6, 6, 6)).flatten())


def test_crops_prefer_tissue_and_stay_inside():
    head = torch.zeros(1, 40, 40, 40)
    head[:, 28:36, 28:36, 28:36] = 1
    view, generator = T.RandomView(crop_size=(12, 12, 12)), torch_generator(0)
    starts = [view.draw(head, generator)[0] for _ in range(400)]
    showing = np.mean([T.crop(head, start, (12, 12, 12)).any().item() for start in starts])
    anywhere = np.mean(
        [all(axis >= 17 for axis in start) for start in torch.randint(29, (4000, 3), generator=generator).tolist()]
    )
    assert all(0 <= axis <= 28 for start in starts for axis in start)
    assert showing > anywhere + 0.05


def test_a_smaller_volume_is_padded_with_air():
    view = T.RandomView(crop_size=(10, 6, 12))(torch.ones(3, 6, 6, 6), torch_generator(0))
    assert view.shape == (3, 10, 6, 12)
    assert view.sum() == 3 * 6**3


@pytest.mark.parametrize("view_share", [None, (1.0, 1.0), (0.4, 0.9)])
def test_augmentation_is_fixed_by_its_generator_and_has_the_size_asked_for(view_share):
    augment = T.Augment(crop_size=(8, 8, 8), view_share=view_share)
    given = torch.rand(3, 12, 9, 7, generator=torch_generator(0))
    first, again, other = (augment(given, torch_generator(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 8, 8, 8)
    assert first.is_contiguous()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("view_share", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.5)])
def test_an_impossible_share_is_refused(view_share):
    with pytest.raises(ValueError, match="view_share"):
        T.RandomView(crop_size=(8, 8, 8), view_share=view_share)
