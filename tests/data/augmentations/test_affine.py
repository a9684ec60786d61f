import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from voxelwave.data.augmentations.affine import RandomAffine, apply_affine
from voxelwave.ops.seeding import torch_generator

SHAPE = (9, 12, 7)


def volumes(batch_size=3, channels=2):
    return torch.rand((batch_size, channels, *SHAPE), generator=torch_generator(0), dtype=torch.float64)


@pytest.mark.parametrize(("nearest", "order"), [(False, 1), (True, 0)])
def test_scipy_finds_the_same_voxels(nearest, order):
    volume = volumes()
    matrices = RandomAffine(degrees=40, log_scale=0.3, shift=0.2).draw(len(volume), SHAPE, torch_generator(1))
    moved = apply_affine(volume, matrices, nearest=nearest)
    centre = (np.array(SHAPE) - 1) / 2
    for sample, matrix, result in zip(volume, matrices.double().numpy(), moved, strict=True):
        offset = centre - matrix[:, :3] @ centre + matrix[:, 3]
        for channel, found in zip(sample, result, strict=True):
            expected = affine_transform(
                channel.numpy(), matrix[:, :3], offset, order=order, mode="grid-constant", cval=0
            )
            same = np.isclose(found.numpy(), expected, atol=1e-4)
            # A place halfway between two voxels may round either way.
            assert same.mean() > (0.99 if nearest else 0.9999)


def test_nothing_moves_where_nothing_may():
    volume = volumes().float()
    for still in (RandomAffine(probability=0), RandomAffine(degrees=0, log_scale=0, shift=0)):
        assert torch.allclose(still(volume, torch_generator(1)), volume, atol=1e-5)
        labels = (volume > 0.5).byte()
        assert torch.equal(still.moved(labels, torch_generator(1)), labels)


def test_turns_are_rigid_and_within_the_angle():
    matrices = RandomAffine(degrees=20, log_scale=0, shift=0.1).draw(200, SHAPE, torch_generator(1))
    turns, shifts = matrices[:, :, :3], matrices[:, :, 3]
    assert torch.allclose(turns @ turns.mT, torch.eye(3).expand_as(turns), atol=1e-5)
    angles = ((turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()
    assert 15 < math.degrees(angles.max()) < 20 * math.sqrt(3)
    assert (shifts.abs() <= 0.1 * torch.tensor(SHAPE)).all()
    assert (shifts.abs().amax(0) > 0.08 * torch.tensor(SHAPE)).all()


def test_a_share_of_the_samples_moves():
    moved = RandomAffine(probability=0.3).draw(400, SHAPE, torch_generator(1))
    still = (moved == torch.eye(3, 4)).all(2).all(1)
    assert 0.6 < still.float().mean() < 0.8


@pytest.mark.parametrize("wrong", [{"probability": 1.1}, {"degrees": 181}, {"log_scale": -1}, {"shift": math.nan}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=r"between|at least 0"):
        RandomAffine(**wrong)
