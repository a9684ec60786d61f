"""What holds for every reconstruction, trained or classical."""

from functools import partial

import pytest
import torch

from support.tiny_unets import tiny_promptmr
from support.undersampled import undersampled
from voxelwave.contracts import Reconstruction
from voxelwave.unrolled.classical import EspiritMaps, Grappa, L1Wavelet
from voxelwave.unrolled.image_unet import ImageUnet
from voxelwave.unrolled.sense import Sense
from voxelwave.unrolled.sensitivity import low_resolution_maps
from voxelwave.unrolled.zero_filled import zero_filled


def with_library(name, make):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'voxelwave[classical]'")
    return make()


RECONSTRUCTIONS = {
    "promptmr_plus": tiny_promptmr,
    "variational_network": lambda: tiny_promptmr(
        unet={"prompts": False}, sensitivity={"adjacent": False}, num_buffers=0
    ),
    "image_unet": lambda: ImageUnet(channels=4, depth=2),
    "zero_filled": lambda: zero_filled,
    "sense": lambda: Sense(iterations=5),
    "l1_wavelet": lambda: with_library("sigpy", lambda: L1Wavelet(iterations=3, maps=EspiritMaps(kernel_width=4))),
    "grappa": lambda: with_library("pygrappa", Grappa),
}


@pytest.fixture(params=RECONSTRUCTIONS)
def reconstruct(request):
    torch.manual_seed(0)
    return RECONSTRUCTIONS[request.param]()


@pytest.mark.parametrize("shape", [(24, 20), (23, 19)])
@torch.no_grad()
def test_an_image_of_the_centre_slice_is_made_without_reading_what_is_not_sampled(reconstruct, shape):
    kspace, sampled, *_ = undersampled(shape=shape)
    assert isinstance(reconstruct, Reconstruction)
    assert kspace.isnan().any()
    image = reconstruct(kspace, sampled)
    assert image.shape == (2, *shape)
    assert image.dtype == torch.float32
    assert image.isfinite().all()
    assert image.max() > 0


@torch.no_grad()
def test_lines_and_places_say_the_same(reconstruct):
    kspace, sampled, *_ = undersampled()
    places = sampled[:, None].expand(-1, kspace.shape[-2], -1)
    torch.testing.assert_close(reconstruct(kspace, places), reconstruct(kspace, sampled), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_image_has_the_unit_of_the_kspace(reconstruct):
    kspace, sampled, *_ = undersampled()
    image, small = reconstruct(kspace, sampled), reconstruct(kspace * 1e-5, sampled)
    torch.testing.assert_close(small * 1e5, image, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_of_nothing_comes_nothing(reconstruct):
    kspace, sampled, *_ = undersampled()
    assert (reconstruct(torch.zeros_like(kspace), sampled) == 0).all()


@torch.no_grad()
def test_the_sampled_centre_may_be_given_for_all_and_for_each(reconstruct):
    kspace, sampled, *_ = undersampled()
    found, given = reconstruct(kspace, sampled), reconstruct(kspace, sampled, 8)
    torch.testing.assert_close(reconstruct(kspace, sampled, torch.tensor([8, 8])), given)
    assert found.shape == given.shape


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("name", ["promptmr_plus", "variational_network", "image_unet", "zero_filled", "sense"])
@torch.no_grad()
def test_coils_in_groups_give_the_image_of_all_at_once(name, at_once):
    torch.manual_seed(0)
    whole = RECONSTRUCTIONS[name]()
    kspace, sampled, *_ = undersampled()
    expected = whole(kspace, sampled)
    if name == "zero_filled":
        grouped = partial(zero_filled, coils_at_once=at_once)
    elif name == "sense":
        grouped = Sense(iterations=5, coils_at_once=at_once, maps=partial(low_resolution_maps, coils_at_once=at_once))
    else:
        grouped = whole
        grouped.coils_at_once = at_once
    for chosen in (sampled, sampled[:, None].expand(-1, kspace.shape[-2], -1)):
        torch.testing.assert_close(grouped(kspace, chosen), expected, rtol=1e-4, atol=1e-5)
    assert kspace.shape[2] > 2
