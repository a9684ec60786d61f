import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.backbones.residual_cnn import InstanceNorm, ResidualBlock, ResidualCNN

PATCH = 4


def backbone(depth=2, seed=0, **changed):
    torch.manual_seed(seed)
    return ResidualCNN(**{"patch_size": PATCH, "embed_dim": 16, "depth": depth, **changed}).double()


def volume_of(grid, channels=1, batch=2):
    return torch.randn(batch, channels, *(side * PATCH for side in grid), dtype=torch.float64)


def voxels(hidden):
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(PATCH, axis)
    return hidden.unsqueeze(1)


@settings(deadline=None, max_examples=15)
@given(
    grid=st.tuples(*[st.integers(1, 4)] * 3),
    channels=st.sampled_from([1, 3]),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 1000),
)
def test_hidden_voxels_change_nothing_whatever_the_mask(grid, channels, share, seed):
    torch.manual_seed(seed)
    hidden = torch.rand(2, *grid) < share
    hidden[:, 0, 0, 0] = False
    model, volume = backbone(), volume_of(grid, channels)
    final, inner = model.forward_intermediates(volume, hidden, [0, 1, 2])
    garbage, inner_of_garbage = model.forward_intermediates(
        volume.masked_fill(voxels(hidden), torch.nan), hidden, [0, 1, 2]
    )
    for one, other in zip((final, *inner), (garbage, *inner_of_garbage), strict=True):
        assert one.shape == (2, 16, *grid)
        assert torch.equal(one, other)
        assert one.movedim(1, -1)[hidden].abs().sum() == 0.0


def test_hidden_voxels_have_no_gradient_and_visible_ones_do():
    hidden = torch.rand(2, 3, 3, 3) < 0.5
    hidden[:, 0, 0, 0] = False
    volume = volume_of((3, 3, 3)).requires_grad_()
    backbone()(volume, hidden).square().sum().backward()
    assert volume.grad[voxels(hidden)].abs().max() == 0.0
    assert (volume.grad[~voxels(hidden)] != 0).float().mean() > 0.99


def test_hidden_patches_are_zeros_of_the_input():
    hidden = torch.rand(2, 3, 3, 3) < 0.5
    hidden[:, 0, 0, 0] = False
    model, volume = backbone(), volume_of((3, 3, 3), channels=3)
    cleared = model(volume.masked_fill(voxels(hidden), 0.0)).masked_fill(hidden.unsqueeze(1), 0.0)
    torch.testing.assert_close(model(volume, hidden), cleared)


def test_a_block_equals_that_of_monai():
    from monai.networks.blocks import UnetResBlock

    ours = ResidualBlock(6)
    theirs = UnetResBlock(3, 6, 6, 3, 1, ("INSTANCE", {"affine": True}))
    for parameter in ours.parameters():  # norms begin at 1 and 0: let them take part
        parameter.data += 0.1 * torch.randn_like(parameter)
    renamed = {"0": "conv1.conv", "1": "norm1", "3": "conv2.conv", "4": "norm2"}
    weights = {}
    for name, value in ours.residual.state_dict().items():
        number, kind = name.split(".")
        weights[f"{renamed[number]}.{kind}"] = value
    theirs.load_state_dict(weights)
    volume = torch.randn(2, 6, 5, 4, 7)
    torch.testing.assert_close(ours(volume), theirs(volume))


def test_instance_norm_equals_that_of_torch_and_takes_a_single_place():
    ours, theirs = InstanceNorm(3), torch.nn.InstanceNorm3d(3, affine=True)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data = one.data = torch.randn(3)
    volume = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(ours(volume), theirs(volume))
    torch.testing.assert_close(ours(volume[..., :1, :1, :1])[0, :, 0, 0, 0], ours.bias)


def test_the_network_equals_its_layers_written_out():
    model, volume = backbone(depth=1, patch_size=2), volume_of((2, 2, 2))

    def convolved(x, conv, norm, stride=1):
        x = F.conv3d(x, conv.weight, stride=stride, padding=1)
        return F.instance_norm(x, weight=norm.weight, bias=norm.bias)

    def block(x, layers):
        inner = F.leaky_relu(convolved(x, layers[0], layers[1]), 0.01)
        return F.leaky_relu(x + convolved(inner, layers[3], layers[4]), 0.01)

    fine = model.to_tokens
    x = F.conv3d(volume, model.stems["1"].weight, padding=1)
    x = F.leaky_relu(F.instance_norm(x, weight=fine[0].weight, bias=fine[0].bias), 0.01)
    x = block(x, fine[2].residual)
    embedded = F.leaky_relu(convolved(x, fine[3], fine[4], stride=2), 0.01)
    last = block(embedded, model.blocks[0].residual)
    final, (first, second) = model.forward_intermediates(volume, None, [0, 1])
    torch.testing.assert_close(first, embedded)
    torch.testing.assert_close(second, last)
    torch.testing.assert_close(final, model.norm(last.movedim(1, -1)).movedim(-1, 1))


def test_the_features_of_an_inner_depth_need_no_block_above_it():
    model, volume = backbone(depth=3), volume_of((2, 3, 2))
    _, (inner,) = model.forward_intermediates(volume, None, [1])
    del model.blocks[1:]
    torch.testing.assert_close(model(volume), model.norm(inner.movedim(1, -1)).movedim(-1, 1))


def test_one_and_three_channels_share_every_parameter_behind_the_first_convolutions():
    model = backbone()
    for channels, other in ((1, 3), (3, 1)):
        model.zero_grad(set_to_none=True)
        hidden = (torch.rand(2, 3, 3, 3) < 0.5).index_fill(1, torch.tensor([0]), False)
        (model(volume_of((3, 3, 3), channels), hidden) ** 3).sum().backward()
        missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert missing == {f"stems.{other}.weight"}
        assert all(parameter.grad.abs().max() > 1e-9 for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("fine_depth", [0, 1, 2])
def test_the_patch_size_is_the_stride_whatever_the_blocks_on_the_way(patch_size, fine_depth):
    model = backbone(patch_size=patch_size, fine_depth=fine_depth)
    assert model(torch.rand(1, 1, 8, 16, 24).double()).shape == (1, 16, *(side // patch_size for side in (8, 16, 24)))


def test_its_convolutions_keep_their_precision_under_autocast_on_the_cpu():
    model, volume = backbone().float(), volume_of((2, 2, 2)).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(volume), model(volume.float()), rtol=0, atol=0)
        assert model(volume).dtype == torch.float32


def test_its_default_size_is_that_of_a_small_transformer():
    assert 0.7e6 < sum(parameter.numel() for parameter in ResidualCNN().parameters()) < 1e6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patch_size": 6}, "a power of two, got 6"),
        ({"patch_size": 0}, "a power of two, got 0"),
        ({"embed_dim": 18}, "a multiple of 4, got 18"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"fine_depth": -1}, "fine_depth at least 0, got 2 and -1"),
    ],
)
def test_a_size_that_does_not_fit_is_an_error_that_says_why(given, message):
    with pytest.raises(ValueError, match=message):
        backbone(**given)


@pytest.mark.parametrize(
    ("volume", "hidden", "message"),
    [
        (torch.rand(1, 2, 8, 8, 8), None, r"\[batch, 1 or 3, .*got \[1, 2,"),
        (torch.rand(1, 1, 8, 8, 9), None, "not divisible by patch size 4"),
        (torch.rand(1, 1, 8, 8, 8), torch.ones(1, 2, 2, 2, dtype=torch.bool), "at least one must stay visible"),
    ],
)
def test_a_volume_that_does_not_fit_is_an_error(volume, hidden, message):
    with pytest.raises(ValueError, match=message):
        backbone()(volume.double(), hidden)
