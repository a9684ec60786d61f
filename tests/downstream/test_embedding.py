import numpy as np
import pytest
import torch

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.downstream.embedding import (
    embed_crops,
    embed_tokens,
    embed_volume,
    fitted_size,
    frame,
    occupied_tokens,
    random_crops,
    token_centres,
    untrained_twin,
)
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.ops.patches import patchify, token_grid
from voxelwave.ops.seeding import torch_generator

SETTINGS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def pyramid(**preprocessing):
    torch.manual_seed(0)
    described = {"architecture": {"name": "waveformer", "settings": SETTINGS}, "preprocessing": preprocessing}
    return FeaturePyramid(WaveFormer3D((1, 3), **SETTINGS), description=described).eval()


def head(depth, height, width, channels=1):
    """A volume whose outer four voxels are air."""
    volume = torch.zeros(channels, depth, height, width)
    volume[:, 4:-4, 4:-4, 4:-4] = 0.2 + 0.8 * torch.rand(channels, depth - 8, height - 8, width - 8)
    return volume


def test_an_embedding_is_the_mean_over_the_tokens_that_are_not_constant():
    features, volume = pyramid(), head(16, 16, 24, channels=3)
    grid = features(volume[None])[-1][0].detach()
    rows = []
    for d in range(4):
        for h in range(4):
            for w in range(6):
                patch = volume[:, 4 * d : 4 * d + 4, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4]
                if any(channel.min() < channel.max() for channel in patch):
                    rows.append(grid[:, d, h, w])
    assert len(rows) == 2 * 2 * 4
    torch.testing.assert_close(embed_volume(features, volume, size=None), torch.stack(rows).mean(0))


@pytest.mark.parametrize("around", [(8, 0, 0, 0, 0, 0), (0, 16, 8, 8, 24, 0)])
def test_an_embedding_ignores_what_is_padded(around):
    features, volume = pyramid(), head(16, 16, 24)
    padded = torch.nn.functional.pad(volume, around)
    torch.testing.assert_close(
        embed_volume(features, padded, size=None), embed_volume(features, volume, size=None), atol=1e-5, rtol=0
    )


def test_a_scan_is_fitted_where_the_backbone_saw_whole_scans():
    assert fitted_size(pyramid(crop_size=[16, 16, 32], view_share=[0.5, 1.0])) == (16, 16, 32)
    assert fitted_size(pyramid(crop_size=[16, 16, 32], view_share=None)) is None
    features, volume = pyramid(crop_size=[32, 32, 32], view_share=[1, 1]), head(32, 16, 16)
    # The scan fills one side of the cube, and is padded along the others.
    fitted = embed_volume(features, volume, size=fitted_size(features))
    torch.testing.assert_close(fitted, embed_volume(features, volume, size=None), atol=1e-5, rtol=0)
    large = torch.nn.functional.interpolate(volume[None], scale_factor=2, mode="nearest")[0]
    torch.testing.assert_close(embed_volume(features, large, size=(32, 32, 32)), fitted, atol=1e-5, rtol=0)


def test_sides_become_whole_patches():
    assert frame(torch.rand(1, 9, 8, 3), 4, size=None).shape == (1, 12, 8, 4)
    assert embed_volume(pyramid(), torch.rand(1, 9, 8, 3), size=None).shape == (24,)


def test_of_air_alone_all_tokens_are_taken():
    features, air = pyramid(), torch.zeros(1, 16, 16, 16)
    everywhere = features(air[None])[-1][0].detach().mean((1, 2, 3))
    torch.testing.assert_close(embed_volume(features, air, size=None), everywhere)


def test_a_large_volume_goes_in_tiles_whose_tokens_count_alike():
    features, volume = pyramid(crop_size=[16, 16, 16]), head(40, 32, 48)
    total, count = 0.0, 0
    for d in range(0, 40, 16):
        for h in range(0, 32, 16):
            for w in range(0, 48, 16):
                tile = volume[:, d : d + 16, h : h + 16, w : w + 16]
                tokens = int(occupied_tokens(tile, 4).sum())
                total, count = total + tokens * embed_volume(features, tile, size=None), count + tokens
    embedding = embed_volume(features, volume, size=None)
    torch.testing.assert_close(embedding, total / count, atol=1e-5, rtol=0)
    # Eight crops go through as one: there tokens of all of them attend each other.
    assert (embedding - embed_volume(pyramid(crop_size=[24] * 3), volume, size=None)).abs().max() > 1e-4


def test_chosen_tokens_are_those_of_the_whole_grid():
    features, volume = pyramid(crop_size=[16, 16, 16]), head(48, 32, 32)
    varies = occupied_tokens(frame(volume, 4, size=None), 4)
    everywhere = embed_tokens(features, volume, chosen=varies, size=None)
    torch.testing.assert_close(everywhere.mean(0), embed_volume(features, volume, size=None), atol=1e-5, rtol=0)
    chosen = varies & (torch.rand(varies.shape) < 0.3)
    assert torch.equal(embed_tokens(features, volume, chosen=chosen, size=None), everywhere[chosen[varies]])
    with pytest.raises(ValueError, match="a chosen token is air"):
        embed_tokens(features, volume, chosen=torch.ones_like(varies), size=None)


def test_crops_lie_in_the_scan_and_follow_from_their_generator():
    features, volume = pyramid(crop_size=[16, 16, 32]), head(24, 16, 48)
    crops = random_crops(features, volume, count=3, generator=torch_generator(0), size=None)
    assert crops.shape == (3, 1, 16, 12, 32)  # 3/4 of each side, a crop at most
    assert {float(crop.max()) in volume for crop in crops} == {True}
    again, others = (
        embed_crops(features, volume, count=3, generator=torch_generator(key), size=None) for key in (0, 1)
    )
    torch.testing.assert_close(again, torch.stack([embed_volume(features, crop, size=None) for crop in crops]))
    assert not torch.equal(again, others)


def test_the_untrained_twin_is_another_backbone_of_the_same_kind():
    features, state = pyramid(), torch.random.get_rng_state()
    first, again, other = (untrained_twin(features, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    shapes = {name: value.shape for name, value in features.backbone.state_dict().items()}
    assert {name: value.shape for name, value in first.backbone.state_dict().items()} == shapes
    volume = torch.rand(1, 8, 8, 8)
    embeddings = [embed_volume(one, volume, size=None) for one in (first, again, other, features)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert all((embeddings[0] - one).abs().max() > 0.01 for one in embeddings[2:])


@pytest.mark.parametrize(
    ("shape", "size"),
    [((16, 24, 18), None), ((17, 20, 13), None), ((40, 60, 20), (36, 28, 32)), ((6, 9, 8), (24, 24, 20))],
)
def test_a_token_lies_where_the_voxels_lie_that_it_shows(shape, size):
    places = torch.stack(torch.meshgrid(*(torch.arange(float(side)) for side in shape), indexing="ij"))
    framed = frame(torch.cat([places, torch.ones(1, *shape)]), 4, size=size)
    patches = patchify(framed[None], 4)[0].mean(-1)
    full = patches[:, 3] == 1  # those that show no padding
    tokens = torch.ones(token_grid(framed.shape, 4)).nonzero()[full].double().numpy()
    matrix = token_centres((1, *shape), 4, size=size)
    # Where a scan grows, its outermost voxels are repeated.
    inside = (
        (tokens @ matrix[:3, :3].T + matrix[:3, 3] > 1)
        & (tokens @ matrix[:3, :3].T + matrix[:3, 3] < np.array(shape) - 2)
    ).all(1)
    assert inside.sum() > 3
    found = (tokens @ matrix[:3, :3].T + matrix[:3, 3])[inside]
    np.testing.assert_allclose(found, patches[full, :3].numpy()[inside], atol=0.5 if size else 1e-5)
