import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import (
    complete_conjugates,
    disc,
    fixed_mask,
    half_plane,
    highest_mean_power,
    num_kept,
    opposite,
    random_mask,
    variable_density,
)
from voxelwave.physics.fourier import as_pairs, fft2c, ifft2c

NAMES = ["random", "random_with_zero", "variable_density", "disc", "half_plane", "power"]
sides = st.integers(5, 24)


def kspaces(shape, number=3, seed=1):
    """Return random complex k-space of `number` images."""
    return torch.randn(number, *shape, dtype=torch.complex64, generator=torch_generator(seed))


@given(height=sides, width=sides, drop_rate=st.floats(0, 0.99), lines=st.booleans(), name=st.sampled_from(NAMES))
@settings(max_examples=60, deadline=None)
def test_the_number_of_kept_frequencies_is_exact(height, width, drop_rate, lines, name):
    places = width if lines else height * width
    wanted = round((1 - drop_rate) * places)
    arguments = {"drop_rate": drop_rate, "lines": lines, "training": kspaces((height, width))}
    if wanted == 0:
        with pytest.raises(ValueError, match="keeps none"):
            fixed_mask(name, (height, width), torch_generator(0), **arguments)
        return
    sampled = fixed_mask(name, (height, width), torch_generator(0), **arguments)
    assert (sampled.shape, sampled.dtype) == ((height, width), torch.bool)
    assert int(sampled.sum()) == wanted * (height if lines else 1)
    if lines:
        assert torch.equal(sampled, sampled[:1].expand(height, width))


@pytest.mark.parametrize("drop_rate", [0, 0.1, 0.37, 0.7, 0.93, 0.99])
@pytest.mark.parametrize("shape", [(24, 24), (25, 31), (32, 17)])
def test_a_poisson_disc_is_exact_too(shape, drop_rate):
    sampled = fixed_mask("poisson_disc", shape, torch_generator(0), drop_rate=drop_rate)
    assert int(sampled.sum()) == round((1 - drop_rate) * math.prod(shape))


@pytest.mark.parametrize("drop_rate", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_a_drop_rate_out_of_range_is_refused(drop_rate):
    with pytest.raises(ValueError, match="drop_rate, the share of frequencies to remove") as error:
        num_kept(100, drop_rate)
    assert "\n" not in str(error.value)


def test_halves_are_rounded_to_the_even_number():
    assert [num_kept(places, 0.5) for places in (5, 7, 9)] == [2, 4, 4]


@pytest.mark.parametrize("lines", [False, True])
def test_the_zero_frequency_of_a_random_mask_is_kept_or_left_to_chance(lines):
    shape, rate = (9, 12), 0.8
    masks = {
        keep: [
            random_mask(shape, torch_generator(seed), drop_rate=rate, lines=lines, keep_zero=keep) for seed in range(60)
        ]
        for keep in (False, True)
    }
    assert all(bool(mask[4, 6]) for mask in masks[True])
    assert 0 < sum(bool(mask[4, 6]) for mask in masks[False]) < 30


@pytest.mark.parametrize("lines", [False, True])
def test_variable_density_is_dense_near_the_zero_frequency(lines):
    masks = [variable_density((17, 20), torch_generator(seed), drop_rate=0.6, lines=lines) for seed in range(200)]
    often = torch.stack(masks).double().mean(0)
    assert often[8, 10] == 1.0
    inner, outer = often[6:11, 8:13].mean(), often[:, [0, 1, 18, 19]].mean()
    assert inner > 0.7
    assert outer < 0.3


def test_a_disc_has_no_dropped_place_nearer_than_a_kept_one():
    kept = disc((15, 15), drop_rate=0.6).numpy()
    y, x = np.mgrid[-7:8, -7:8]
    assert np.hypot(y, x)[kept].max() <= np.hypot(y, x)[~kept].min()
    assert disc((6, 9), drop_rate=5 / 9, lines=True)[0].nonzero()[:, 0].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("lines", [False, True])
def test_highest_mean_power_is_a_sort_in_numpy_of_the_given_images_alone(lines):
    kspace = kspaces((7, 10), number=6)
    power = (np.abs(kspace[:4].numpy().astype(np.complex128)) ** 2).mean(0)
    kept = np.zeros((7, 10), dtype=bool)
    if lines:
        kept[:, np.argsort(-power.sum(0))[:6]] = True
    else:
        kept.flat[np.argsort(-power, axis=None)[:42]] = True
    assert np.array_equal(highest_mean_power(kspace[:4], drop_rate=0.4, lines=lines).numpy(), kept)
    assert np.array_equal(highest_mean_power(as_pairs(kspace[:4]), drop_rate=0.4, lines=lines).numpy(), kept)
    kspace[4:, :, 2] *= 10
    assert not np.array_equal(highest_mean_power(kspace, drop_rate=0.4, lines=lines).numpy(), kept)


@pytest.mark.parametrize("shape", [(6, 8), (7, 9), (6, 9), (7, 8)])
def test_the_opposite_of_a_frequency_is_that_of_the_conjugate_in_a_real_image(shape):
    kspace = fft2c(torch.randn(shape, dtype=torch.float64, generator=torch_generator(2)) + 0j)
    torch.testing.assert_close(opposite(kspace).conj(), kspace)


@pytest.mark.parametrize("shape", [(16, 16), (15, 17), (14, 9)])
@pytest.mark.parametrize("lines", [False, True])
def test_conjugates_complete_magnitude_images_exactly_and_complex_ones_wrongly(shape, lines):
    magnitude = torch.rand(shape, dtype=torch.float64, generator=torch_generator(3)) + 0j
    phase = 2 * torch.rand(shape, dtype=torch.float64, generator=torch_generator(4))
    sampled = half_plane(shape, drop_rate=0.3, lines=lines)

    def error(image, complete):
        kspace = torch.where(sampled, fft2c(image), 0)
        filled = complete_conjugates(kspace, sampled) if complete else kspace
        return float((ifft2c(filled) - image).norm() / image.norm())

    assert error(magnitude, complete=True) < 1e-14 < 0.1 < error(magnitude, complete=False)
    turned = torch.polar(magnitude.real, phase)
    assert error(turned, complete=True) > error(turned, complete=False) > 0.05


def test_half_a_plane_has_one_of_each_pair_and_pairs_are_completed_as_complex_values_are():
    sampled = half_plane((8, 8), drop_rate=0.5)
    assert not bool((sampled & opposite(sampled) & (torch.arange(8) > 4)).any())
    kspace = kspaces((8, 8))
    completed = complete_conjugates(as_pairs(kspace), sampled)
    assert torch.equal(completed, as_pairs(complete_conjugates(kspace, sampled)))


def test_what_a_fixed_mask_cannot_be_made_of_is_refused_in_a_line():
    for name, arguments, reason in (
        ("power", {}, r"needs training k-space \[image, \*\(8, 6\)\], got none"),
        ("power", {"training": kspaces((6, 8))}, r"got \(3, 6, 8\)"),
        ("poisson_disc", {"lines": True}, "not of lines"),
    ):
        with pytest.raises(ValueError, match=reason):
            fixed_mask(name, (8, 6), torch_generator(0), drop_rate=0.5, **arguments)
    with pytest.raises(ValueError, match="one image at least"):
        highest_mean_power(kspaces((4, 4))[:0], drop_rate=0.5)
