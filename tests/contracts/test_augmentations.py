"""Checks that every registered augmentation passes alike, whoever wrote it."""

from __future__ import annotations

import inspect

import pytest
import torch

from voxelwave.data.augmentations import Augmentation, SpatialAugmentation
from voxelwave.ops.seeding import torch_generator
from voxelwave.registry import AUGMENTATIONS

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
every_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS.names())


def batch(shape=(4, 3, 6, 6, 8)):
    return torch.rand(shape, generator=torch_generator(0))


@every_augmentation
def test_it_is_an_augmentation_with_at_most_eight_settings_each_with_a_default(name):
    parameters = inspect.signature(AUGMENTATIONS.get(name)).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    assert all(p.default is not inspect.Parameter.empty for p in parameters)
    assert len(parameters) <= 8
    assert AUGMENTATIONS.get(name).__doc__
    assert isinstance(AUGMENTATIONS.build(name), Augmentation)


@every_augmentation
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 1, 5, 7, 4), (3, 3, 6, 4, 6)])
def test_shape_dtype_and_device_stay_and_the_given_batch_is_not_written_to(name, shape, dtype, device):
    volume = batch(shape).to(device, dtype)
    kept = volume.clone()
    changed = AUGMENTATIONS.build(name)(volume, torch_generator(1))
    assert torch.equal(volume, kept)
    assert (changed.shape, changed.dtype, changed.device) == (volume.shape, volume.dtype, volume.device)
    assert changed.is_contiguous()
    assert bool(changed.isfinite().all())


@every_augmentation
@pytest.mark.parametrize("device", DEVICES)
def test_the_same_state_of_the_generator_gives_the_same_result_and_another_another(name, device):
    augmentation, volume = AUGMENTATIONS.build(name), batch((8, 2, 6, 6, 6)).to(device)
    first, again, other = (augmentation(volume, torch_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every_augmentation
def test_each_sample_is_changed_in_its_own_way(name):
    same = batch((1, 2, 6, 6, 6)).expand(8, -1, -1, -1, -1)
    changed = AUGMENTATIONS.build(name)(same, torch_generator(1))
    assert len(changed.flatten(1).unique(dim=0)) > 2


@every_augmentation
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_rounded_result_of_single_precision(name, dtype):
    augmentation, volume = AUGMENTATIONS.build(name), batch().to(dtype)
    expected = augmentation(volume.float(), torch_generator(1)).to(dtype)
    assert torch.equal(augmentation(volume, torch_generator(1)), expected)


@every_augmentation
@pytest.mark.parametrize("layout", ["reversed axes", "channels last", "part of a batch"])
def test_the_memory_layout_of_the_batch_does_not_matter(name, layout):
    volume = {
        "reversed axes": batch((8, 6, 6, 3, 4)).permute(4, 3, 2, 1, 0),
        "channels last": batch().to(memory_format=torch.channels_last_3d),
        "part of a batch": batch((8, 3, 6, 6, 16))[::2, :, :, :, 3:11],
    }[layout]
    assert not volume.is_contiguous()
    changed = AUGMENTATIONS.build(name)(volume, torch_generator(1))
    assert changed.is_contiguous()
    expected = AUGMENTATIONS.build(name)(volume.contiguous(), torch_generator(1))
    # To a rounding: a power is computed by another routine where neighbours do not lie side by side.
    assert torch.allclose(changed, expected, rtol=1e-6, atol=0)


@every_augmentation
def test_values_outside_0_to_1_stay_finite(name):
    volume = batch() * 4 - 2
    assert bool(AUGMENTATIONS.build(name)(volume, torch_generator(1)).isfinite().all())


@every_augmentation
def test_what_moves_voxels_says_so_and_moves_labels_alike(name):
    augmentation = AUGMENTATIONS.build(name)
    volume = torch.full((8, 1, 12, 12, 12), 0.1)
    volume[:, :, 1:6, 2:9, 3:6] = 0.9
    labels = (volume > 0.5).byte()
    changed = augmentation(volume, torch_generator(1))
    # Unlike the corner, whether brighter or darker: contrasts may be turned around.
    unlike = (changed - changed[:, :, :1, :1, :1]).abs()
    moved = unlike > unlike.amax((2, 3, 4), keepdim=True) / 2
    assert isinstance(augmentation, SpatialAugmentation) == (not torch.equal(moved, labels.bool()))
    if isinstance(augmentation, SpatialAugmentation):
        alike = augmentation.moved(labels, torch_generator(1))
        assert alike.dtype == labels.dtype
        assert alike.unique().tolist() == [0, 1]
        # Where voxels are interpolated, the box's faces fall between them.
        apart = (alike.bool() != moved).float().mean()
        assert apart < 0.25 * (labels.bool() != moved).float().mean()
