import pytest
import torch

from support.masks import blocks
from voxelwave.sparse.decoder import LightDecoder
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.volume import Sites, SparseVolume


def test_features_are_those_of_the_active_sites_in_raster_order():
    active = blocks((3, 4, 5), side=1, share=0.4, batch=2)
    grid = torch.randn(2, 6, 3, 4, 5)
    volume = SparseVolume.at(grid, active)
    expected = [grid[sample, :, d, h, w] for sample, d, h, w in active.nonzero().tolist()]
    assert torch.equal(volume.features, torch.stack(expected))
    assert torch.equal(volume.sites.coordinates, active.nonzero())
    rows = volume.sites.rows
    assert [int(rows[tuple(place)]) for place in active.nonzero()] == list(range(len(expected)))
    assert (rows[~active] == -1).all()


def test_coarse_sites_are_those_over_an_active_one():
    active = blocks((3, 4, 5), side=1, share=0.1, batch=2)
    coarse = Sites(active).coarse.active
    assert coarse.shape == (2, 2, 2, 3)
    for sample in range(2):
        expected = {(d // 2, h // 2, w // 2) for d, h, w in active[sample].nonzero().tolist()}
        assert {tuple(place) for place in coarse[sample].nonzero().tolist()} == expected


@pytest.mark.parametrize("filled", [True, False])
def test_densify_puts_the_mask_embedding_where_nothing_was_seen(filled):
    active = blocks((3, 4, 5), side=1, share=0.4, batch=2)
    grid, filling = torch.randn(2, 3, 3, 4, 5), torch.randn(3) if filled else None
    expected = torch.zeros(3) if filling is None else filling
    expected = torch.where(active.unsqueeze(1), grid, expected.view(1, 3, 1, 1, 1))
    assert torch.equal(SparseVolume.at(grid, active).densify(filling), expected)


@pytest.mark.parametrize("grid", [(8, 8, 8), (6, 5, 7), (2, 2, 2), (1, 3, 2)])
def test_decoder_returns_every_token_of_the_finest_scale(grid):
    widths = (4, 6, 8)
    encoder, decoder = SparseEncoder(3, widths=widths).double(), LightDecoder(widths, width=5).double()
    active = blocks(grid, side=1, share=0.4, batch=2)
    decoded = decoder(encoder(SparseVolume.at(torch.randn(2, 3, *grid, dtype=torch.float64), active)))
    assert decoded.shape == (2, 5, *grid)
    decoded.sum().backward()
    assert all(parameter.grad is not None for parameter in (*encoder.parameters(), *decoder.parameters()))
