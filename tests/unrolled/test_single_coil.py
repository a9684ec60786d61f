import pytest
import torch

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import random_mask
from voxelwave.registry import MASK_RULES, SUBSAMPLED_MODELS
from voxelwave.unrolled.subsampling import FixedMask, channels_of, kspace_of

SHAPE = (13, 18)
SMALL = {
    "plain": {"channels": 4, "depth": 2},
    "unet": {"channels": 2, "depth": 2},
    "unrolled": {"num_cascades": 2, "channels": 2, "depth": 1},
}
every_model = pytest.mark.parametrize("name", SUBSAMPLED_MODELS.names())


def kspace(number=3):
    return torch.randn(number, *SHAPE, dtype=torch.complex64, generator=torch_generator(1))


def fixed(drop_rate=0.4):
    return FixedMask(random_mask(SHAPE, torch_generator(0), drop_rate=drop_rate))


def stirred(model):
    """Give every weight a random value: networks begin by adding nothing."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@every_model
def test_it_begins_at_the_zero_filled_image(name):
    layer = fixed()
    model = SUBSAMPLED_MODELS.build(name, layer, **SMALL[name])
    torch.testing.assert_close(model(kspace()), channels_of(layer(kspace())), rtol=1e-4, atol=1e-5)


@every_model
def test_frequencies_that_are_removed_change_nothing(name):
    layer = fixed()
    model = stirred(SUBSAMPLED_MODELS.build(name, layer, **SMALL[name])).eval()
    other = torch.where(layer.mask(), kspace(), 7.0)
    assert torch.equal(model(kspace()), model(other))


@every_model
def test_images_in_another_unit_are_reconstructed_alike(name):
    torch.manual_seed(0)
    model = stirred(SUBSAMPLED_MODELS.build(name, fixed(), **SMALL[name])).double()
    of = kspace().cdouble()
    torch.testing.assert_close(model(of * 1e-4), model(of) * 1e-4, rtol=1e-6, atol=1e-12)


@every_model
@pytest.mark.parametrize("rule", MASK_RULES.names())
def test_each_rule_learns_behind_it(name, rule):
    torch.manual_seed(0)
    layer = MASK_RULES.build(rule, SHAPE, drop_rate=0.5)
    model = stirred(SUBSAMPLED_MODELS.build(name, layer, **SMALL[name]))
    before = layer.scores.clone()
    (model(kspace()) - channels_of(kspace())).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    layer.mask_step(1.0)
    assert not torch.equal(layer.scores, before)
    assert int(layer.mask().sum()) == SHAPE[0] * SHAPE[1] // 2


def test_the_unrolled_network_steps_towards_its_samples():
    """With U-Nets that add nothing, an image that disagrees with the samples is drawn to them by weight 1."""
    layer = fixed()
    model = SUBSAMPLED_MODELS.build("unrolled", layer, **SMALL["unrolled"])
    with torch.no_grad():
        stirred(model.unets[0])
    made, sampled = model(kspace()), layer(kspace())
    found = layer(kspace_of(made.detach()))
    torch.testing.assert_close(found, sampled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"), [("plain", {"depth": 1}), ("unet", {"channels": 0}), ("unrolled", {"num_cascades": 0})]
)
def test_numbers_out_of_range_are_refused(name, settings):
    with pytest.raises(ValueError, match="at least 1"):
        SUBSAMPLED_MODELS.get(name)(fixed(), **settings)
