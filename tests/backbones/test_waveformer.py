import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.backbones.wavelet_attention import RotaryPositions, WaveletAttention
from voxelwave.masking.mim import MiMMasking

PATCH = 2


def backbone(levels=1, depth=2, seed=0):
    torch.manual_seed(seed)
    model = WaveFormer3D(patch_size=PATCH, embed_dim=24, depth=depth, num_heads=2, wavelet_levels=levels).double()
    for parameter in model.parameters():  # gates and the mask token start at 0: let them take part
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def volume_of(grid, channels=1, batch=2):
    return torch.randn(batch, channels, *(side * PATCH for side in grid), dtype=torch.float64)


def block_mask(grid, batch=2, seed=0):
    return MiMMasking()(grid, batch, torch.Generator().manual_seed(seed)).hidden


def voxels(hidden):
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(PATCH, axis)
    return hidden.unsqueeze(1)


@settings(deadline=None, max_examples=25)
@given(
    grid=st.tuples(*[st.integers(2, 7)] * 3),
    channels=st.sampled_from([1, 3]),
    share=st.floats(0.1, 0.9),
    seed=st.integers(0, 1000),
)
def test_hidden_voxels_change_nothing_whatever_the_mask(grid, channels, share, seed):
    torch.manual_seed(seed)
    hidden = torch.rand(2, *grid) < share
    hidden[:, 0, 0, 0] = False
    model, volume = backbone(), volume_of(grid, channels)
    changed = volume.masked_fill(voxels(hidden), torch.nan)
    assert (model(volume, hidden) - model(changed, hidden)).abs().max() == 0.0


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("grid", [(4, 4, 4), (8, 4, 8), (5, 6, 7)])
def test_visible_only_equals_dense_for_a_wholly_visible_volume(grid, levels):
    model, volume = backbone(levels), volume_of(grid)
    nothing = torch.zeros(2, *grid, dtype=torch.bool)
    torch.testing.assert_close(model(volume, nothing), model(volume), rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_computing_visible_blocks_alone_equals_computing_the_masked_grid(levels):
    # A hidden sample of another count forces the masked-grid way for the whole batch.
    model, grid = backbone(levels), (8, 8, 8)
    side = 2**levels
    hidden = MiMMasking(block_side=side)(grid, 2, torch.Generator().manual_seed(1)).hidden
    fewer = hidden[:1].clone()
    fewer[:, :side, :side, :side] = ~fewer[:, :side, :side, :side]
    volume = volume_of(grid, batch=3)
    together = model(volume, torch.cat([hidden, fewer]))
    torch.testing.assert_close(together[:2], model(volume[:2], hidden), rtol=0, atol=1e-10)
    torch.testing.assert_close(together[2:], model(volume[2:], fewer), rtol=0, atol=1e-10)


def test_samples_of_a_batch_do_not_mix():
    model, volume, hidden = backbone(), volume_of((4, 4, 4), batch=3), block_mask((4, 4, 4), 3)
    alone = torch.cat([model(volume[i : i + 1], hidden[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model(volume, hidden), alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("high_bands", ["attend", "gate"])
def test_wavelet_attention_equals_plain_loops(high_bands):
    torch.manual_seed(0)
    layer = WaveletAttention(12, num_heads=2, high_bands=high_bands).double()
    layer.gate.data = torch.randn(7, 12, dtype=torch.float64)
    tokens, places = (
        torch.randn(1, 16, 12, dtype=torch.float64),
        torch.tensor([[[0.5, 0.5, 0.5], [0.5, 0.5, 2.5]]]).double(),
    )

    def sign(token, band):
        return (-1.0) ** bin(token & band).count("1") / 8**0.5

    # 1. Bands of each octet by their definition; queries and keys, of the low-pass band, turned pair by pair.
    octets = tokens.view(2, 8, 12)
    bands = torch.stack([sum(sign(t, band) * octets[:, t] for t in range(8)) for band in range(8)], 1)
    q, k = (bands[:, 0] @ layer.qkv.weight[:24].T + layer.qkv.bias[:24]).view(2, 2, 2, 6).unbind(1)
    v = bands @ layer.qkv.weight[24:].T + layer.qkv.bias[24:]

    def turned(x, octet):
        out = x.clone()
        for axis in range(3):  # one pair an axis for heads of 6 dimensions, of frequency 1
            a, b = x[axis], x[3 + axis]
            angle = places[0, octet, axis]
            out[axis], out[3 + axis] = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
        return out

    attended = torch.zeros(2, 8, 12, dtype=torch.float64)
    for octet, head in itertools.product(range(2), range(2)):
        scores = torch.stack([turned(q[octet, head], octet) @ turned(k[other, head], other) for other in range(2)])
        weights, own = torch.softmax(scores / 6**0.5, 0), slice(6 * head, 6 * head + 6)
        attended[octet, :, own] = weights[0] * v[0, :, own] + weights[1] * v[1, :, own]
    attended = attended @ layer.out.weight.T + layer.out.bias
    # 2. High-pass bands through their gates, with the transform's matrix written out as signs.
    expected = torch.zeros(2, 8, 12, dtype=torch.float64)
    for token, band in itertools.product(range(8), range(8)):
        update = attended[:, band] if high_bands == "attend" or not band else 0
        if band:
            update = update + layer.gate[band - 1] * bands[:, band]
        expected[:, token] += sign(token, band) * update
    torch.testing.assert_close(layer(tokens, places)[0], expected.flatten(0, 1))


def test_rotary_scores_depend_on_differences_of_places_alone():
    rotary = RotaryPositions(24).double()
    q, k = torch.randn(2, 1, 1, 1, 24, dtype=torch.float64)

    def score(a, b):
        turned = [
            rotary.rotate(x, *rotary.angles(torch.tensor([[p]], dtype=torch.float64))) for x, p in ((q, a), (k, b))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score([1.0, 2.0, 3.0], [4.0, 0.0, 1.0]), score([11.0, 7.0, 3.5], [14.0, 5.0, 1.5]))
    assert not torch.isclose(score([1.0, 2.0, 3.0], [4.0, 0.0, 1.0]), score([1.0, 2.0, 3.0], [4.0, 0.0, 2.0]))


def test_patch_embedding_equals_its_convolution():
    model, volume = backbone(), volume_of((4, 4, 4), 3)
    _, (embedded,) = model.forward_intermediates(volume, None, [0])
    stem = model.stems["3"]
    torch.testing.assert_close(embedded, F.conv3d(volume, stem.weight, stem.bias, stride=PATCH))


def test_intermediates_are_the_grids_after_each_depth():
    model, volume = backbone(depth=3), volume_of((4, 4, 4))
    final, (first, last) = model.forward_intermediates(volume, None, [1, 3])
    shallow = backbone(depth=3)
    shallow.blocks = shallow.blocks[:1]
    torch.testing.assert_close(first, shallow.forward_intermediates(volume, None, [1])[1][0])
    torch.testing.assert_close(final, model.norm(last.movedim(1, -1)).movedim(-1, 1))


def test_one_and_three_channels_share_every_parameter_behind_the_embeddings():
    model = backbone()
    for channels, other in ((1, 3), (3, 1)):
        model.zero_grad(set_to_none=True)
        hidden = (torch.rand(2, 4, 4, 4) < 0.5).index_fill(1, torch.tensor([0]), False)
        model(volume_of((4, 4, 4), channels), hidden).square().sum().backward()
        missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert missing == {f"stems.{other}.weight", f"stems.{other}.bias"}


@pytest.mark.parametrize("channels", [2, 4])
def test_another_number_of_channels_is_an_error_that_names_what_is_accepted(channels):
    with pytest.raises(ValueError, match=rf"\[batch, 1 or 3, .*got \[2, {channels},"):
        backbone()(volume_of((4, 4, 4), channels))


def test_a_sample_without_a_visible_token_is_an_error():
    with pytest.raises(ValueError, match="at least one must stay visible"):
        backbone()(volume_of((4, 4, 4)), torch.ones(2, 4, 4, 4, dtype=torch.bool))


def test_a_mask_of_another_grid_is_an_error():
    with pytest.raises(ValueError, match=r"`hidden` must be \[2, 4, 4, 4\], got \[2, 4, 4, 2\]"):
        backbone()(volume_of((4, 4, 4)), torch.zeros(2, 4, 4, 2, dtype=torch.bool))


def test_any_size_that_the_patch_divides_runs_with_the_same_weights():
    model = backbone()
    for grid in ((2, 2, 2), (4, 6, 8), (3, 5, 9), (10, 12, 8)):
        assert model(volume_of(grid)).shape == (2, 24, *grid)


def test_without_wavelets_every_token_attends_every_other_as_in_a_plain_transformer():
    torch.manual_seed(0)
    attention = WaveletAttention(24, num_heads=2, levels=0).double()
    tokens, places = torch.randn(1, 5, 24, dtype=torch.float64), torch.zeros(1, 5, 3)  # one place: nothing is turned
    plain = torch.nn.MultiheadAttention(24, 2, batch_first=True).double()
    plain.in_proj_weight.data, plain.in_proj_bias.data = attention.qkv.weight.data, attention.qkv.bias.data
    plain.out_proj.load_state_dict(attention.out.state_dict())
    torch.testing.assert_close(attention(tokens, places), plain(tokens, tokens, tokens)[0], rtol=0, atol=1e-12)
