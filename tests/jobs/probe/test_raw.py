import numpy as np
import torch

from voxelwave.downstream.embedding import frame
from voxelwave.jobs.probe.raw import PLACES, over_channels, raw_scan, raw_tokens


def test_a_token_is_its_voxels_and_where_it_lies():
    volume = torch.rand(3, 8, 12, 6, generator=torch.Generator().manual_seed(0))
    framed = frame(volume, 4, size=None)  # 8 × 12 × 8
    chosen = torch.zeros(2, 3, 2, dtype=torch.bool)
    chosen[1, 2, 0] = chosen[0, 1, 1] = True
    found = raw_tokens(framed, 4, chosen=chosen)
    expected = [
        [*framed[:, d * 4 :, h * 4 :, w * 4 :][:, :4, :4, :4].flatten(), (d + 0.5) / 2, (h + 0.5) / 3, (w + 0.5) / 2]
        for d, h, w in ((0, 1, 1), (1, 2, 0))  # in raster order
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_scan_is_the_mean_and_the_deciles_of_what_is_not_air():
    volume = torch.zeros(3, 8, 8, 16)
    volume[:, :, :, 4:12] = torch.rand(3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    found = raw_scan(volume, 4, size=None).view(3, 12)
    for channel, row in zip(volume[:, :, :, 4:12].flatten(1).numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(row[0], channel.mean(), rtol=1e-5)
        np.testing.assert_allclose(row[1:], np.quantile(channel, np.linspace(0, 1, 11)), atol=5e-3)
    assert torch.isfinite(raw_scan(torch.zeros(1, 8, 8, 8), 4, size=None)).all()


def test_of_several_channels_the_mean_is_compared_and_the_place_stays():
    volume = torch.rand(3, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    chosen = torch.ones(1, 1, 2, dtype=torch.bool)
    found = over_channels(raw_tokens(volume, 4, chosen=chosen).numpy(), 3, places=PLACES)
    alone = raw_tokens(volume.mean(0, keepdim=True), 4, chosen=chosen)
    np.testing.assert_allclose(found, alone, rtol=1e-5)
