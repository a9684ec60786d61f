import math

import numpy as np
import pytest
import torch

from voxelwave.evaluation.image_quality import challenge_ssim, data_ranges, nmse, psnr_db, ssim
from voxelwave.losses.image_mask import challenge_mask
from voxelwave.losses.structural_similarity import structural_similarity
from voxelwave.ops.seeding import torch_generator


@pytest.fixture
def volumes():
    """A volume whose slices differ in brightness, with zeros around, and a noisy version; of the order 1e-4."""
    generator = torch_generator("volumes")
    target = torch.zeros(3, 70, 66)
    target[:, 22:46, 20:44] = 1 + torch.rand(3, 24, 24, generator=generator)
    target *= torch.tensor([1.0, 0.5, 2.0])[:, None, None] * 1e-4
    return target + 3e-6 * torch.randn(target.shape, generator=generator), target


def test_psnr_and_nmse_are_those_of_the_volume(volumes):
    predicted, target = (volume.double().numpy() for volume in volumes)
    error = ((predicted - target) ** 2).mean()
    assert psnr_db(*volumes) == pytest.approx(10 * np.log10(target.max() ** 2 / error), abs=1e-9)
    assert psnr_db(*volumes, data_range=3e-4) == pytest.approx(10 * np.log10(9e-8 / error), abs=1e-9)
    assert nmse(*volumes) == pytest.approx(((predicted - target) ** 2).sum() / (target**2).sum())


def test_psnr_with_the_range_of_each_slice_is_the_mean_over_slices(volumes):
    each = [psnr_db(one[None], other[None]) for one, other in zip(*volumes, strict=True)]
    assert psnr_db(*volumes, data_range="slice") == pytest.approx(np.mean(each))


def test_equal_volumes_have_no_error(volumes):
    _, target = volumes
    assert (psnr_db(target, target), nmse(target, target)) == (math.inf, 0)
    assert ssim(target, target) == pytest.approx(1)


@pytest.mark.parametrize("data_range", ["slice", "volume", 4.2e-4])
def test_ssim_is_the_mean_over_slices_with_the_asked_range(volumes, data_range):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed: pip install scikit-image")
    predicted, target = (volume.double().numpy() for volume in volumes)
    ranges = {"slice": [one.max() for one in target], "volume": [target.max()] * 3}.get(data_range, [data_range] * 3)
    wanted = [
        metrics.structural_similarity(one, other, win_size=7, data_range=float(given))
        for one, other, given in zip(target, predicted, ranges, strict=True)
    ]
    assert ssim(*volumes, data_range=data_range) == pytest.approx(np.mean(wanted), abs=1e-6)


def test_the_ranges_are_named_ones_or_a_number(volumes):
    _, target = volumes
    assert data_ranges(target, "slice").tolist() == [one.max().item() for one in target]
    assert data_ranges(target, "volume").tolist() == [target.max().item()] * 3
    assert data_ranges(target, 1).tolist() == [1.0] * 3


@pytest.mark.parametrize("anatomy", ["brain", "knee"])
def test_the_challenge_multiplies_both_by_the_mask_of_the_target_and_keeps_its_range(volumes, anatomy):
    predicted, target = volumes
    inside = challenge_mask(target, anatomy=anatomy)
    assert 0 < inside.float().mean() < 1
    given = target.max().expand(3)
    wanted = structural_similarity(predicted * inside, target * inside, data_range=given).mean().item()
    assert challenge_ssim(predicted, target, anatomy=anatomy) == pytest.approx(wanted)
    assert wanted > ssim(predicted, target)
