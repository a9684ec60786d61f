from dataclasses import replace

import pytest
import torch
from torch import nn

from support.tiny_unets import tiny_promptmr
from support.undersampled import undersampled
from voxelwave.physics.acquisition import combine, root_sum_of_squares
from voxelwave.physics.fourier import fft2c, ifft2c
from voxelwave.unrolled.normal_operator import NormalOperator
from voxelwave.unrolled.prompt_unet import UnetShape
from voxelwave.unrolled.promptmr_plus import Cascade, PromptMRPlus, VariationalNetwork
from voxelwave.unrolled.sensitivity import SensitivityShape


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Silent(nn.Module):
    """Stands in for a U-Net that says 0 once its mean is added: nothing is normalised, nothing is added."""

    multiple = 1

    def forward(self, channels, history=None):
        return torch.zeros_like(channels), []


def silenced(network, monkeypatch):
    """A network whose model terms are 0."""
    monkeypatch.setattr(
        "voxelwave.unrolled.promptmr_plus.normalised", lambda channels, multiple: (channels, lambda output: output)
    )
    for cascade in network.cascades:
        cascade.unet = Silent()
    return network


def recipe(**changes):
    """The network with the numbers of the recipe, without memory for its weights."""
    shape = SensitivityShape()
    with torch.device("meta"):
        return PromptMRPlus(
            unet=replace(UnetShape(), **changes), sensitivity=replace(shape, unet=replace(shape.unet, **changes))
        )


def millions(parameters):
    return sum(weight.numel() for weight in parameters) / 1e6


@pytest.mark.parametrize(
    ("changes", "total"),
    [({}, 31.55), ({"bottleneck_blocks": 3}, 34.2), ({"channel_attention": True}, 32.2)],
)
def test_the_recipe_has_as_many_parameters_as_published(changes, total):
    assert millions(recipe(**changes).parameters()) == pytest.approx(total, rel=0.01)


def test_prompts_are_no_part_of_the_trainable_parameters():
    network = recipe()
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    assert millions(trainable) == pytest.approx(26.99, rel=0.01)
    assert millions(network.cascades[0].parameters()) == pytest.approx(3.90, rel=0.01)
    assert millions(network.sensitivity.parameters()) == pytest.approx(0.347, rel=0.01)


def test_a_variational_network_is_the_same_without_prompts_and_buffers():
    with torch.device("meta"):
        network = VariationalNetwork()
    assert not [name for name, _ in network.named_parameters() if "prompt" in name]
    assert network.cascades[0].unet.first.in_channels == 6


def test_with_all_samples_and_no_model_term_the_root_sum_of_squares_of_the_input_comes_out(monkeypatch):
    # All coils at all frequencies are the maps' own images, which the stand-in gives back as they are.
    network = silenced(tiny_promptmr(), monkeypatch)
    network.sensitivity.unet = type("Identity", (Silent,), {"forward": lambda self, x: (x, [])})()
    image = undersampled(shape=(24, 20)).image
    maps = undersampled(shape=(24, 20)).maps
    kspace = fft2c(image.unsqueeze(2) * maps)
    found = network(kspace, torch.ones(2, 20, dtype=torch.bool), 20)
    wanted = root_sum_of_squares(ifft2c(kspace[:, 1]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_a_model_term_a_cascade_is_one_step_of_gradient_descent(monkeypatch):
    (cascade,) = silenced(tiny_promptmr(num_cascades=1), monkeypatch).cascades
    kspace, sampled, maps, image = undersampled()
    acquisition = NormalOperator(maps.expand(2, 3, -1, -1, -1), sampled)
    first = combine(ifft2c(kspace.nan_to_num()), maps)
    cascade.weight.data.fill_(0.7)
    found, *_ = cascade(image.flip(-1), [first], first, acquisition, [])
    wanted = image.flip(-1) - 0.7 * (acquisition(image.flip(-1)) - first)
    torch.testing.assert_close(found, wanted)
    # Samples of the image itself leave it as it is.
    torch.testing.assert_close(cascade(image, [first], first, acquisition, [])[0], image, rtol=1e-5, atol=1e-5)


def test_a_cascade_shows_its_network_the_buffer_in_order_and_takes_model_term_and_latent_images_out(monkeypatch):
    (cascade,) = silenced(tiny_promptmr(num_cascades=1, num_buffers=5), monkeypatch).cascades
    _, sampled, maps, image = undersampled()
    acquisition = NormalOperator(maps.expand(2, 3, -1, -1, -1), sampled)
    first, latent = image.flip(-1), [image.flip(-2), 2 * image]
    cascade.unet.forward = lambda channels, history: (seen.append(channels) or channels, [])
    seen = []
    found, next_latent, _ = cascade(image, latent, first, acquisition, [])
    ffx = acquisition(image)
    groups = torch.cat([image, ffx, *latent, first, ffx - first], 1)
    assert seen[0].equal(torch.cat([groups.real, groups.imag], 1))
    torch.testing.assert_close(found, -(ffx - first))
    assert [one.equal(other) for one, other in zip(next_latent, latent, strict=True)] == [True, True]


@torch.no_grad()
def test_the_image_is_what_all_coils_see_together():
    kspace, sampled, *_ = undersampled()
    network = tiny_promptmr()
    coils = network.coil_images(kspace, sampled)
    assert coils.shape == (2, 4, 24, 20)
    assert coils.is_complex()
    assert root_sum_of_squares(coils).equal(network(kspace, sampled))


@pytest.mark.parametrize("shape", [(90, 74), (17, 23)])
@torch.no_grad()
def test_odd_sizes_come_back_as_given(shape):
    kspace, sampled, *_ = undersampled(batch=1, coils=2, shape=shape)
    assert tiny_promptmr()(kspace, sampled).shape == (1, *shape)


def test_nothing_has_a_finite_gradient():
    kspace, sampled, *_ = undersampled()
    network = tiny_promptmr()
    image = network(torch.zeros_like(kspace), sampled)
    image.sum().backward()
    assert (image == 0).all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_history": 1, "num_cascades": 3},
        {"unet": {"learnable_prompts": True}, "num_buffers": 5},
        {"unet": {"prompts": False}, "num_buffers": 0, "sensitivity": {"adjacent": False, "per_coil": True}},
        {"checkpointing": True},
    ],
)
def test_a_gradient_reaches_every_trainable_parameter(settings):
    kspace, sampled, *_ = undersampled()
    network = tiny_promptmr(**settings)
    network(kspace, sampled).square().mean().backward()
    without = [
        name
        for name, weight in network.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    ]
    assert not without


@pytest.mark.parametrize("num_history", [0, 2])
def test_checkpointing_and_coil_by_coil_change_neither_image_nor_gradient(num_history):
    kspace, sampled, *_ = undersampled()
    found = []
    for saving in (False, True):
        torch.manual_seed(0)
        network = tiny_promptmr(
            num_cascades=3, num_history=num_history, checkpointing=saving, sensitivity={"per_coil": saving}
        )
        image = network(kspace, sampled)
        image.sum().backward()
        found.append((image.detach(), [w.grad for w in network.parameters() if w.requires_grad]))
    (image, gradients), (same_image, same_gradients) = found
    assert (image - same_image).abs().max() < 4e-6 * image.max()
    for one, other in zip(gradients, same_gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * one.norm() + 1e-6


@torch.no_grad()
def test_early_cascades_recall_as_many_as_there_are():
    network = tiny_promptmr(num_cascades=4, num_history=2)
    widths = [
        cascade.unet.decoders[0].recall.in_channels // 4 if cascade.unet.decoders[0].recall else 0
        for cascade in network.cascades
    ]
    assert widths == [0, 1, 2, 2]
    kspace, sampled, *_ = undersampled()
    assert network(kspace, sampled).isfinite().all()


@torch.no_grad()
def test_adjacent_slices_change_the_centre_one():
    kspace, sampled, *_ = undersampled()
    network = tiny_promptmr()
    assert not network(kspace.roll(1, 0)[:, [0, 1, 2]], sampled).allclose(network(kspace, sampled))
    other = torch.stack([kspace[:, 2], kspace[:, 1], kspace[:, 0]], 1)
    assert not network(other, sampled).allclose(network(kspace, sampled), rtol=1e-6)


@torch.no_grad()
def test_the_centre_is_found_in_what_is_sampled():
    kspace, sampled, *_ = undersampled()
    network = tiny_promptmr()
    inferred = network(kspace, sampled)
    assert inferred.equal(network(kspace, sampled, 8))
    assert not inferred.allclose(network(kspace, sampled, 4))


def test_another_number_of_slices_is_refused():
    kspace, sampled, *_ = undersampled(slices=1)
    with pytest.raises(ValueError, match="3 slices together, got 1"):
        tiny_promptmr()(kspace, sampled)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_slices": 2}, "num_slices odd, got 2 and 2"),
        ({"num_cascades": 0}, "num_cascades must be 1 to 100"),
        ({"num_buffers": 2}, "num_buffers must be 0 or at least 3, got 2"),
        ({"num_history": -1}, "num_history must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_promptmr(**settings)


def test_a_cascade_starts_with_a_whole_step():
    assert Cascade(1, unet=UnetShape(), num_buffers=4, num_history=0).weight.item() == 1
