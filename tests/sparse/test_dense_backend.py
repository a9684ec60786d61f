import itertools

import pytest
import torch

from voxelwave.sparse.decoder import LightDecoder
from voxelwave.sparse.dense import DenseBackend
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.volume import SparseVolume


def random_volume(grid=(4, 5, 6), channels=3, share=0.4, batch=2):
    active = torch.rand(batch, 1, *grid) < share
    active[:, :, 0, 0, 0] = True
    return SparseVolume.at(torch.randn(batch, channels, *grid, dtype=torch.float64), active)


def test_submanifold_convolution_equals_loops_over_active_sites():
    torch.manual_seed(0)
    volume = random_volume()
    weight, bias = torch.randn(2, 3, 3, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    expected = torch.zeros(2, 2, 4, 5, 6, dtype=torch.float64)
    for sample, _, d, h, w in volume.active.nonzero().tolist():
        value = bias.clone()
        for i, j, k in itertools.product(range(3), repeat=3):
            x, y, z = d + i - 1, h + j - 1, w + k - 1
            if 0 <= x < 4 and 0 <= y < 5 and 0 <= z < 6 and volume.active[sample, 0, x, y, z]:
                value += weight[:, :, i, j, k] @ volume.features[sample, :, x, y, z]
        expected[sample, :, d, h, w] = value
    result = DenseBackend().convolve(volume, weight, bias)
    torch.testing.assert_close(result.features, expected)
    assert torch.equal(result.active, volume.active)


@pytest.mark.parametrize("grid", [(4, 4, 6), (3, 5, 4)])
def test_strided_convolution_is_active_where_any_of_its_eight_sites_was(grid):
    torch.manual_seed(0)
    volume = random_volume(grid, share=0.1)
    weight, bias = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    result = DenseBackend().downsample(volume, weight, bias)
    assert result.features.shape[2:] == tuple(-(-side // 2) for side in grid)
    for sample, (d, h, w) in itertools.product(range(2), itertools.product(*map(range, result.features.shape[2:]))):
        inside = (slice(2 * d, 2 * d + 2), slice(2 * h, 2 * h + 2), slice(2 * w, 2 * w + 2))
        seen = bool(volume.active[(sample, 0, *inside)].any())
        block = volume.features[(sample, slice(None), *inside)]
        value = torch.einsum("ocijk,cijk->o", weight[..., : block.shape[1], : block.shape[2], : block.shape[3]], block)
        expected = (value + bias) * seen
        torch.testing.assert_close(result.features[sample, :, d, h, w], expected)
        assert bool(result.active[sample, 0, d, h, w]) == seen


def test_inactive_sites_stay_zero_and_reach_nothing_at_any_scale():
    torch.manual_seed(0)
    encoder = SparseEncoder(3, widths=(4, 6, 8)).double()
    active = random_volume((8, 8, 8)).active
    features = torch.randn(2, 3, 8, 8, 8, dtype=torch.float64)
    scales = encoder(SparseVolume.at(features, active))
    changed = encoder(SparseVolume.at(features.masked_fill(~active, torch.nan), active))
    for number, (scale, other) in enumerate(zip(scales, changed, strict=True)):
        assert scale.features.shape[2:] == (8 >> number,) * 3
        assert torch.equal(scale.features, other.features)
        assert scale.features.masked_fill(scale.active, 0.0).abs().max() == 0.0


def test_densify_puts_the_mask_embedding_where_nothing_was_seen():
    volume = random_volume()
    filling = torch.randn(3, dtype=torch.float64)
    dense = volume.densify(filling)
    expected = torch.where(volume.active, volume.features, filling.view(1, 3, 1, 1, 1))
    torch.testing.assert_close(dense, expected)


@pytest.mark.parametrize("grid", [(8, 8, 8), (6, 5, 7), (2, 2, 2), (1, 3, 2)])
def test_decoder_returns_every_token_of_the_finest_scale(grid):
    widths = (4, 6, 8)
    encoder, decoder = SparseEncoder(3, widths=widths).double(), LightDecoder(widths, width=5).double()
    decoded = decoder(encoder(random_volume(grid)))
    assert decoded.shape == (2, 5, *grid)
    decoded.sum().backward()
    assert all(parameter.grad is not None for parameter in (*encoder.parameters(), *decoder.parameters()))


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="unknown sparse backend 'cuda'"):
        SparseEncoder(3, backend="cuda")
