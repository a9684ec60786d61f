from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from support.tiny_unets import TINY
from voxelwave.ops.seeding import torch_generator
from voxelwave.unrolled.prompt_unet import ChannelAttention, Level, PromptBlock, PromptUnet, ResidualBlock, UpBlock


def features(*shape, key=0):
    return torch.randn(shape, generator=torch_generator(key))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_a_block_adds_two_convolutions_with_a_prelu_between_them():
    block, x = ResidualBlock(4, channel_attention=False), features(2, 4, 6, 5)
    first, prelu, second = block.body
    inner = F.conv2d(x, first.weight, padding=1)
    wanted = x + F.conv2d(torch.where(inner > 0, inner, prelu.weight * inner), second.weight, padding=1)
    torch.testing.assert_close(block(x), wanted)


def test_channel_attention_gives_each_channel_one_weight_between_0_and_1():
    x = features(2, 8, 6, 5)
    ratio = ChannelAttention(8)(x) / x
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert ((ratio > 0) & (ratio < 1)).all()


def test_prompts_are_mixed_by_weights_that_follow_from_the_mean_features():
    block = PromptBlock(4, level=Level(4, 3, 5, 1, 1), learnable=False)
    x = features(2, 4, 7, 6)
    found = block(x)
    for sample, prompt in zip(x, found, strict=True):
        weights = torch.softmax(block.weigh.weight @ sample.mean((1, 2)) + block.weigh.bias, 0)
        mixed = sum(weight * one for weight, one in zip(weights, block.prompts, strict=True))
        resized = F.interpolate(mixed[None], (7, 6), mode="bilinear")
        torch.testing.assert_close(prompt, F.conv2d(resized, block.last.weight, padding=1)[0])


@pytest.mark.parametrize("learnable", [False, True])
def test_prompts_stay_at_random_values_from_0_to_1_unless_they_are_learned(learnable):
    net = PromptUnet(2, 2, shape=replace(TINY, learnable_prompts=learnable))
    for decoder in net.decoders:
        assert decoder.prompt.prompts.requires_grad == learnable
        assert 0 <= decoder.prompt.prompts.min() < decoder.prompt.prompts.max() < 1


def test_going_up_narrows_after_interpolating_as_the_paper_does():
    block = UpBlock(8, 6, level=TINY.levels[0], shape=replace(TINY, prompts=False), num_history=0)
    x, skip = features(1, 8, 4, 3), features(1, 6, 8, 6)
    finer, fused = block(x, skip, [])
    upsampled = F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(finer, block.last(block.narrow(upsampled) + skip))


def test_without_prompts_there_are_none():
    net = PromptUnet(2, 4, shape=replace(TINY, prompts=False))
    assert not [name for name, _ in net.named_parameters() if "prompt" in name]
    assert net(features(1, 2, 16, 8))[0].shape == (1, 4, 16, 8)


def test_what_other_networks_made_changes_the_output():
    shape = TINY
    net, x = PromptUnet(2, 2, shape=shape, num_history=1), features(1, 2, 16, 8)
    _, made = PromptUnet(2, 2, shape=shape)(x)
    assert [one.shape[1:] for one in made] == [(4, 8, 4), (6, 4, 2), (8, 2, 1)]
    assert not net(x, [made])[0].allclose(net(x, [[2 * one for one in made]])[0])


def test_a_network_without_levels_is_refused():
    with pytest.raises(ValueError, match="at least one level"):
        PromptUnet(2, 2, shape=replace(TINY, levels=()))
