import numpy as np
import pytest
import torch

from voxelwave.evaluation.image_quality import psnr_db
from voxelwave.objectives.subsampled_reconstruction import SubsampledReconstruction
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import random_mask
from voxelwave.unrolled.learned_mask import DescribedMask
from voxelwave.unrolled.subsampling import FixedMask, channels_of, image_of

SHAPE = (8, 10)


class Identity(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, kspace):
        return channels_of(self.layer(kspace))


def kspace():
    return torch.randn(4, *SHAPE, dtype=torch.complex128, generator=torch_generator(0))


def test_loss_and_psnr_are_those_of_numpy():
    layer = FixedMask(random_mask(SHAPE, torch_generator(1), drop_rate=0.3))
    output = SubsampledReconstruction(Identity(layer))(kspace())
    target, made = image_of(kspace()).numpy(), image_of(layer(kspace())).numpy()
    peak = np.abs(target).max((1, 2))
    loss = np.mean((np.abs(made - target) ** 2).mean((1, 2)) / peak**2)
    psnr = np.mean(10 * np.log10(peak**2 / ((np.abs(made) - np.abs(target)) ** 2).mean((1, 2))))
    assert output.loss.item() == pytest.approx(loss)
    assert float(output.logs["psnr_db"]) == pytest.approx(psnr)
    by_measure = psnr_db(torch.from_numpy(np.abs(made)), torch.from_numpy(np.abs(target)), data_range="slice")
    assert float(output.logs["psnr_db"]) == pytest.approx(by_measure)


def test_the_gradient_by_the_mask_is_that_of_the_squared_error_in_the_unit_of_each_image():
    layer = DescribedMask(SHAPE, drop_rate=0.4)
    before, kept = layer.scores.clone(), layer.mask().double()
    SubsampledReconstruction(Identity(layer))(kspace()).loss.backward()
    layer.mask_step(1.0)
    peak = image_of(kspace()).abs().amax((1, 2))
    power = (kspace().abs().square() / peak.square()[:, None, None]).mean(0) / kept.numel()
    torch.testing.assert_close(before - layer.scores, 2 * (kept - 1) * power, rtol=1e-9, atol=1e-15)


def test_neither_loss_nor_mask_depend_on_the_unit():
    layers = [DescribedMask(SHAPE, drop_rate=0.4) for _ in range(2)]
    losses = []
    for layer, unit in zip(layers, (1.0, 1e-4), strict=True):
        output = SubsampledReconstruction(Identity(layer))(kspace() * unit)
        output.loss.backward()
        layer.mask_step(100.0)
        losses.append(output.loss.item())
    assert losses[0] == pytest.approx(losses[1])
    torch.testing.assert_close(layers[0].scores, layers[1].scores)


def test_what_is_reproduced_exactly_has_a_finite_psnr():
    whole = FixedMask(torch.ones(SHAPE, dtype=torch.bool))
    assert float(SubsampledReconstruction(Identity(whole))(kspace()).logs["psnr_db"]) > 300
