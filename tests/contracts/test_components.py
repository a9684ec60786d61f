"""Checks that every registered component passes alike, whoever wrote it."""

import inspect

import numpy as np
import pytest
import torch

from voxelwave.downstream.load_backbone import load_backbone, save_backbone
from voxelwave.registry import (
    BACKBONES,
    CONTRASTIVE_LOSSES,
    EMBEDDINGS,
    MASK_RULES,
    MASKINGS,
    METRIC_LOSSES,
    MODALITIES,
    SAMPLINGS,
)

SMALL = {
    "waveformer": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "residual_cnn": {"patch_size": 4, "embed_dim": 24, "depth": 2},
}
REGISTRIES = (BACKBONES, MASKINGS, CONTRASTIVE_LOSSES, MODALITIES, SAMPLINGS, EMBEDDINGS, METRIC_LOSSES, MASK_RULES)
EVERYTHING = [(registry, name) for registry in REGISTRIES for name in registry.names()]


@pytest.mark.parametrize(("registry", "name"), EVERYTHING, ids=[f"{r.kind}-{n}" for r, n in EVERYTHING])
def test_constructors_take_at_most_eight_settings_each_with_a_default(registry, name):
    parameters = inspect.signature(registry.get(name)).parameters.values()
    settings = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert len(settings) <= 8
    assert all(p.default is not inspect.Parameter.empty for p in settings)
    assert registry.get(name).__doc__


@pytest.mark.parametrize("name", BACKBONES.names())
@pytest.mark.parametrize("channels", [1, 3])
def test_a_backbone_reads_visible_voxels_alone_and_returns_its_grid(name, channels):
    torch.manual_seed(0)
    backbone = BACKBONES.build(name, (1, 3), **SMALL.get(name, {})).eval()
    patch = backbone.patch_size
    volume = torch.randn(2, channels, 8 * patch, 4 * patch, 4 * patch)
    hidden = torch.rand(2, 8, 4, 4) < 0.6
    hidden[:, 0, 0, 0] = False
    voxels = hidden
    for axis in (1, 2, 3):
        voxels = voxels.repeat_interleave(patch, axis)
    final, (first, last) = backbone.forward_intermediates(volume, hidden, [0, backbone.depth])
    assert final.shape == first.shape == last.shape == (2, backbone.channels, 8, 4, 4)
    for grid in (final, first, last):
        assert grid.movedim(1, -1)[hidden].abs().max() == 0.0
    changed = torch.where(voxels.unsqueeze(1), 100.0, volume)
    assert (backbone(changed, hidden) - final).abs().max() == 0.0


@pytest.mark.parametrize("name", BACKBONES.names())
def test_a_backbone_serves_downstream_and_takes_a_stem_for_other_channels(name, tmp_path):
    backbone = BACKBONES.build(name, (1,), **SMALL.get(name, {}))
    description = {"architecture": {"name": name, "in_channels": [1], "settings": SMALL.get(name, {})}}
    save_backbone(tmp_path, backbone.state_dict(), description)
    features = load_backbone(tmp_path, in_channels=3, depths=[0, backbone.depth]).eval()
    side = 2 * backbone.patch_size
    volume = torch.randn(1, 1, side, side, side)
    levels = features(volume.expand(-1, 3, -1, -1, -1))
    assert [level.shape for level in levels] == [(1, backbone.channels, 2, 2, 2)] * 2
    torch.testing.assert_close(levels[-1], backbone.eval()(volume), atol=1e-4, rtol=1e-4)
    cut = load_backbone(tmp_path, depths=[backbone.depth - 1]).eval()
    _, (inner,) = backbone.forward_intermediates(volume, None, [backbone.depth - 1])
    normed = backbone.norm(inner.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(cut(volume)[0], normed)
    torch.testing.assert_close(cut.backbone(volume), normed)


@pytest.mark.parametrize("name", MASKINGS.names())
@pytest.mark.parametrize("grid", [(4, 4, 4), (8, 6, 4), (16, 16, 16)])
def test_a_masking_repeats_its_draws_and_hides_as_much_of_every_sample(name, grid):
    masking = MASKINGS.build(name)
    first, again = (masking(grid, 3, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.levels, again.levels)
    assert first.levels.shape == (3, *grid)
    assert set(first.levels.unique().tolist()) <= {0, 1, 2}
    num_hidden = first.hidden.flatten(1).sum(1)
    assert num_hidden.unique().numel() == 1
    assert 0 < int(num_hidden[0]) < first.levels[0].numel()


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES.names())
def test_a_contrastive_loss_is_positive_and_finite_and_places_that_do_not_count_have_no_gradient(name):
    torch.manual_seed(0)
    loss = CONTRASTIVE_LOSSES.build(name, (16, 16))
    features = torch.randn(2, 16, 4, 4, 4, requires_grad=True)
    counted = torch.rand(2, 4, 4, 4) < 0.7
    value, alignment = loss(features, torch.randn(2, 16, 4, 4, 4), counted)
    value.backward()
    assert bool(value > 0)
    assert bool(value.isfinite())
    assert 0 <= float(alignment) <= 1
    assert bool(features.grad.isfinite().all())
    assert features.grad.movedim(1, -1)[~counted].abs().max() == 0.0


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES.names())
def test_a_contrastive_loss_is_lower_for_aligned_features_than_for_unrelated_ones(name):
    torch.manual_seed(0)
    loss = CONTRASTIVE_LOSSES.build(name, (16, 16))
    counted = torch.rand(2, 4, 4, 4) < 0.7
    # Features are projected before they are compared: by something that has learned from others what is aligned.
    if projections := list(loss.parameters()):
        optimizer = torch.optim.Adam(projections, lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            features = torch.randn(2, 16, 4, 4, 4)
            loss(features, features, counted)[0].backward()
            optimizer.step()
    features, unrelated = torch.randn(2, 2, 16, 4, 4, 4)
    (aligned, found), (apart, by_chance) = (loss(features, deep, counted) for deep in (features, unrelated))
    assert aligned < 0.5 * apart
    assert by_chance < 0.9 < found


@pytest.mark.parametrize("name", MODALITIES.names())
def test_a_modality_turns_a_scan_into_its_channels_between_0_and_1(name):
    modality = MODALITIES.build(name)
    scan = np.random.default_rng(0).normal(0, 300, size=(12, 13, 14)).astype(np.float32)
    volume = modality(scan)
    assert volume.shape == (modality.channels, 12, 13, 14)
    assert volume.dtype == np.float32
    assert volume.min() >= 0.0
    assert volume.max() <= 1.0
    assert volume.max() > volume.min()
