import math

import numpy as np
import pytest
import torch

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import (
    MultiCoilAcquisition,
    combine,
    complex_noise,
    expand,
    root_sum_of_squares,
    sample,
)
from voxelwave.physics.coil_maps import birdcage_maps
from voxelwave.physics.fourier import fft2c, ifft2c

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
# Leading axes of the data, then of maps and samples: none, shared by all, one each.
BATCHES = [((), ()), ((3,), ()), ((3,), (3,)), ((2, 3), (3,))]


def values(*shape, key=0):
    return torch.randn(shape, dtype=torch.complex128, generator=torch_generator(key))


def choice(*shape):
    return torch.rand(shape, generator=torch_generator("sampled")) < 0.4


def operators(maps, sampled):
    """Name each operator, with its adjoint and whether it takes and gives images of coils."""
    acquisition = MultiCoilAcquisition(maps, sampled)
    return {
        "fft2c": (fft2c, ifft2c, True, True),
        "ifft2c": (ifft2c, fft2c, True, True),
        "expand": (lambda image: expand(image, maps), lambda coils: combine(coils, maps), False, True),
        "combine": (lambda coils: combine(coils, maps), lambda image: expand(image, maps), True, False),
        "sample": (lambda kspace: sample(kspace, sampled), lambda kspace: sample(kspace, sampled), True, True),
        "acquisition": (acquisition.forward, acquisition.adjoint, False, True),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["fft2c", "ifft2c", "expand", "combine", "sample", "acquisition"])
@pytest.mark.parametrize(("coils", "height", "width"), [(4, 8, 6), (3, 7, 9), (1, 5, 4), (1, 1, 3)])
@pytest.mark.parametrize(("batch", "own"), BATCHES)
def test_the_adjoint_gives_the_same_inner_product(name, coils, height, width, batch, own, device):
    maps, sampled = values(*own, coils, height, width, key="maps").to(device), choice(*own, height, width).to(device)
    forward, adjoint, *of_coils = operators(maps, sampled)[name]
    x, y = (
        values(*batch, *[coils] * many, height, width, key=key).to(device)
        for key, many in zip("xy", of_coils, strict=True)
    )
    there, back = forward(x), adjoint(y)
    assert (there.shape, back.shape) == (y.shape, x.shape)
    assert torch.vdot(there.flatten(), y.flatten()).isclose(torch.vdot(x.flatten(), back.flatten()), rtol=1e-12)


def test_an_acquisition_is_coil_by_coil_what_numpy_makes_of_the_image():
    image, maps, sampled = values(7, 6), values(3, 7, 6, key="maps"), choice(7, 6)
    kspace = MultiCoilAcquisition(maps, sampled).forward(image)
    for coil_map, found in zip(maps.numpy(), kspace.numpy(), strict=True):
        whole = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(coil_map * image.numpy()), norm="ortho"))
        np.testing.assert_allclose(found, np.where(sampled.numpy(), whole, 0), atol=1e-12)


@pytest.mark.parametrize("coils", [1, 6])
def test_all_samples_of_normalised_coils_give_the_image_back(coils):
    image = values(2, 9, 8)
    maps = birdcage_maps(coils, (9, 8), dtype=torch.complex128)
    acquisition = MultiCoilAcquisition(maps, torch.ones(9, 8, dtype=torch.bool))
    assert torch.allclose(acquisition.adjoint(acquisition.forward(image)), image, atol=1e-12)


def test_each_sample_of_a_batch_has_its_own_places_also_where_there_are_as_many_coils():
    kspace, sampled = values(3, 3, 5, 4), choice(3, 5, 4)
    found = sample(kspace, sampled)
    for index in range(3):
        for coil in range(3):
            assert torch.equal(found[index, coil] != 0, sampled[index])


def test_what_is_not_sampled_is_not_read():
    kspace, sampled = values(2, 5, 4), choice(5, 4)
    broken = kspace.clone()
    broken[:, ~sampled] = complex(math.nan, math.inf)
    assert torch.equal(sample(broken, sampled), sample(kspace, sampled))


def test_the_root_of_the_sum_of_squares_is_numpys_and_has_a_gradient_at_0():
    images = values(2, 4, 5, 3)
    expected = np.sqrt((np.abs(images.numpy()) ** 2).sum(1))
    np.testing.assert_allclose(root_sum_of_squares(images).numpy(), expected, rtol=1e-12)
    nothing = torch.zeros(4, 5, 3, dtype=torch.complex128, requires_grad=True)
    root_sum_of_squares(nothing).sum().backward()
    assert not nothing.grad.any()


@pytest.mark.parametrize(("dtype", "sigma"), [(torch.complex64, 0.3), (torch.complex128, 2.0)])
def test_noise_is_circular_with_the_power_asked_for(dtype, sigma):
    count = 200_000
    noise = complex_noise((2, count // 2), torch_generator(1), sigma=sigma, dtype=dtype)
    assert (noise.shape, noise.dtype) == ((2, count // 2), dtype)
    noise = noise.to(torch.complex128).flatten() / sigma
    # Five standard errors of each mean: those of 1, of |n|² (deviation 1), of n² (√2) and of |n|⁴ = 2 (√20).
    assert noise.mean().abs() < 5 / count**0.5
    assert (noise.abs().square().mean() - 1).abs() < 5 / count**0.5
    assert noise.square().mean().abs() < 5 * (2 / count) ** 0.5
    assert (noise.abs().pow(4).mean() - 2).abs() < 5 * (20 / count) ** 0.5


def test_noise_follows_its_generator_and_its_sigma():
    first, again, other = (complex_noise((3, 4), torch_generator(key), sigma=0.5) for key in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not complex_noise((3, 4), torch_generator(1), sigma=0).any()


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_noise_of_no_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma of the noise must be at least 0"):
        complex_noise((3, 4), torch_generator(1), sigma=sigma)
