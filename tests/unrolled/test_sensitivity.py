from dataclasses import replace

import pytest
import torch

from support.tiny_unets import TINY_SENSITIVITY
from support.undersampled import undersampled
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import root_sum_of_squares, sample
from voxelwave.physics.fourier import ifft2c
from voxelwave.unrolled.sensitivity import SensitivityNetwork, low_resolution_maps, unit_maps


def network(**settings):
    torch.manual_seed(0)
    return SensitivityNetwork(num_slices=3, shape=replace(TINY_SENSITIVITY, **settings))


@pytest.mark.parametrize("adjacent", [True, False])
@torch.no_grad()
def test_maps_have_unit_length_over_the_coils_of_each_slice(adjacent):
    kspace, sampled, *_ = undersampled()
    length = root_sum_of_squares(network(adjacent=adjacent)(kspace, sampled))
    torch.testing.assert_close(length, torch.ones_like(length))


@pytest.mark.parametrize("adjacent", [True, False])
def test_coil_by_coil_gives_the_same_maps_and_gradients(adjacent):
    kspace, sampled, *_ = undersampled()
    found = []
    for per_coil in (False, True):
        net = network(adjacent=adjacent, per_coil=per_coil)
        maps = net(kspace, sampled)
        (maps - 1).abs().sum().backward()
        found.append((maps.detach(), [weight.grad for weight in net.parameters() if weight.requires_grad]))
    (maps, gradients), (same_maps, same_gradients) = found
    assert (maps - same_maps).abs().max() < 4e-6
    for one, other in zip(gradients, same_gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm()


@torch.no_grad()
def test_only_the_centre_is_seen():
    kspace, sampled, *_ = undersampled()
    changed = kspace.clone()
    changed[..., ~(sampled[0] & (torch.arange(20) - 10).abs().lt(5))] = 7
    net = network()
    torch.testing.assert_close(net(changed, sampled), net(kspace, sampled), rtol=0, atol=0)
    assert not net(changed, sampled, 20).allclose(net(kspace, sampled, 8))


@torch.no_grad()
def test_slices_are_independent_unless_they_are_adjacent_channels():
    kspace, sampled, *_ = undersampled()
    changed = kspace.clone()
    changed[:, 0] = torch.where(kspace[:, 0].isnan(), kspace[:, 0], kspace[:, 0].flip(-2))
    for adjacent in (True, False):
        net = network(adjacent=adjacent)
        assert net(changed, sampled)[:, 1].allclose(net(kspace, sampled)[:, 1]) != adjacent


def test_no_signal_gives_maps_of_0():
    coils = torch.zeros(2, 4, 5, 5, dtype=torch.complex64, requires_grad=True)
    maps = unit_maps(coils)
    maps.abs().sum().backward()
    assert (maps == 0).all()
    assert coils.grad.isfinite().all()


@pytest.mark.parametrize("height", [40, 41])
def test_low_resolution_maps_are_near_the_true_ones_inside_of_the_object(height):
    kspace, sampled, maps, image = undersampled(shape=(height, 36), coils=6)
    found = low_resolution_maps(kspace[:, 1], sampled)
    # The common phase of all coils is the image's, which no maps can know.
    overlap = (found * maps.conj()).sum(1).abs()
    assert overlap[image[:, 1].abs() > 0.5].min() > 0.9
    assert overlap[image[:, 1].abs() > 0.5].mean() > 0.99


def test_low_resolution_maps_are_windowed_images_of_the_centre():
    kspace = torch.randn(1, 3, 12, 10, dtype=torch.complex64, generator=torch_generator(0))
    sampled = torch.ones(1, 12, 10, dtype=torch.bool)
    window = torch.zeros(12, 10)
    for row in range(12):
        for column in range(10):
            y, x = abs(row - 6) / (4 * 12 / 10 + 1), abs(column - 5) / (4 + 1)
            if max(x, y) < 0.5:
                window[row, column] = (torch.cos(torch.tensor([x, y]) * torch.pi) ** 2).prod()
    wanted = unit_maps(ifft2c(sample(kspace, sampled) * window))
    torch.testing.assert_close(low_resolution_maps(kspace, sampled, 4), wanted, rtol=1e-4, atol=1e-5)
