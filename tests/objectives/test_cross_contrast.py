"""Places of two views are matched by their affines, and nothing hidden reaches what is compared."""

import itertools

import numpy as np
import pytest
import torch

from voxelwave.errors import InputError
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.objectives import cross_contrast
from voxelwave.objectives.cross_contrast import PairedView, corresponding, interpolated

PATCH = 4
PAIRS = {"cases": "x", "contrasts": ["T1", "CT"]}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def config(objective="cross_contrast", **settings):
    return check_config(
        {
            "data": {"pairs": PAIRS, "crop_size": [16, 16, 16]},
            "model": {
                "backbone": {"name": "waveformer", "patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 2},
                "encoder_widths": [8, 12],
                "decoder_width": 8,
            },
            "objective": {"name": objective, **settings},
        }
    )


def affine(shift=(0, 0, 0), spacing=1.0):
    matrix = torch.eye(4)
    matrix[:3, :3] *= spacing
    matrix[:3, 3] = torch.tensor(shift, dtype=torch.float32)
    return matrix


def view(seed, channels=1, to_mm=None):
    volume = torch.rand(2, channels, 16, 16, 16, generator=generator(seed))
    labels = torch.randint(1, 18, (2, 16, 16, 16), generator=generator(seed)).byte()
    return PairedView(volume, volume, (affine() if to_mm is None else to_mm).expand(2, 4, 4), labels)


def test_crops_that_lie_whole_tokens_apart_have_the_same_places_that_far_apart():
    there = corresponding(affine((8, 0, -4))[None], affine((0, 4, 0))[None], (4, 4, 4), patch_size=PATCH)
    index = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 3, indexing="ij"), -1)
    assert torch.allclose(there.tokens[0], index + torch.tensor([2.0, -1.0, -1.0]), atol=1e-5)
    # The centre of the first token is that of its four voxels.
    assert torch.allclose(there.places_mm[0, 0, 0, 0], torch.tensor([9.5, 1.5, -2.5]))


def test_places_are_the_same_in_mm_through_any_two_affines():
    random = np.random.default_rng(0)
    one, other = (
        torch.from_numpy(
            np.vstack(
                [np.hstack([np.eye(3) + 0.2 * random.normal(size=(3, 3)), random.normal(size=(3, 1))]), [0, 0, 0, 1]]
            )
        )
        for _ in range(2)
    )
    there = corresponding(one[None], other[None], (3, 4, 5), patch_size=PATCH)
    voxels = (there.tokens.double() + 0.5) * PATCH - 0.5
    again = voxels @ other[:3, :3].T + other[:3, 3]
    assert torch.allclose(again.float(), there.places_mm, atol=1e-4)


def test_features_between_tokens_are_interpolated_from_those_that_count():
    coordinates = torch.stack(torch.meshgrid(*[torch.arange(6.0)] * 3, indexing="ij"))[None]
    places = 0.5 + 4 * torch.rand(1, 2, 2, 2, 3, generator=generator())
    counted = torch.ones(1, 6, 6, 6, dtype=torch.bool)
    found, covered = interpolated(coordinates, counted, places)
    assert covered.all()
    assert torch.allclose(found, places, atol=1e-5)
    # A token that does not count changes nothing, and a place next to too few that do is not covered.
    counted[0, 0] = False
    garbage = coordinates.clone()
    garbage[:, :, 0] = 1e6
    places = torch.tensor([0.2, 3.0, 3.0]).view(1, 1, 1, 1, 3)
    assert not interpolated(garbage, counted, places)[1].any()
    found, covered = interpolated(garbage, counted, torch.tensor([0.8, 3.0, 3.0]).view(1, 1, 1, 1, 3))
    assert covered.all()
    assert torch.allclose(found.flatten(), torch.tensor([1.0, 3.0, 3.0]), atol=1e-5)


@pytest.mark.parametrize("cross_weight", [0.0, 0.5])
def test_hidden_voxels_change_neither_loss_nor_places(cross_weight):
    model = build_pretrainer(config(cross_reconstruction_weight=cross_weight))
    views = view(0), view(1, channels=3, to_mm=affine((4, 0, 0)))
    levels = [model.draw(of.seen, drawn) for drawn in [generator()] for of in views]
    changed = []
    for of, level in zip(views, levels, strict=True):
        hidden = level.hidden
        for axis in (1, 2, 3):
            hidden = hidden.repeat_interleave(PATCH, axis)
        changed.append(of._replace(seen=torch.where(hidden[:, None], torch.rand_like(of.seen) * 9, of.seen)))
    one, other = (model(of, generator()).logs for of in (views, tuple(changed)))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_predicted_is_the_view_without_what_the_scanner_added():
    model = build_pretrainer(config())
    one, other = view(0), view(1, channels=3)
    clean = one._replace(clean=torch.rand_like(one.clean))
    assert (
        model((one, other), generator()).logs["reconstruction"]
        != model((clean, other), generator()).logs["reconstruction"]
    )


def test_views_that_share_nothing_are_only_reconstructed():
    model = build_pretrainer(config(projection_dim=8))
    output = model((view(0), view(1, to_mm=affine((500, 0, 0)))), generator())
    assert output.logs["contrastive"] == output.logs["shared_places"] == 0
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.contrastive.parameters())


def test_a_head_that_is_in_a_batch_twice_is_no_negative_of_itself():
    model = build_pretrainer(config(margin_mm=1000.0))
    twice = torch.zeros(2, dtype=torch.int64)
    views = view(0), view(1, channels=3)
    apart = model(views, generator()).logs["contrastive"]
    alike = model(tuple(of._replace(heads=twice) for of in views), generator()).logs["contrastive"]
    assert apart > 0  # the other head is a negative
    assert alike.abs() < 1e-6  # and within the margin of one head nothing is


def test_of_more_places_than_memory_is_meant_for_some_are_contrasted_spread_over_all_heads(monkeypatch):
    model = build_pretrainer(config())
    seen = []
    contrast = model.contrastive.forward

    def remembered(one, other, places_mm, heads, persons):
        seen.append((places_mm, heads))
        return contrast(one, other, places_mm, heads, persons)

    monkeypatch.setattr(model.contrastive, "forward", remembered)
    views = view(0), view(1, channels=3)
    whole = model(views, generator()).logs
    monkeypatch.setattr(cross_contrast, "MOST_PLACES", 5)
    some = model(views, generator()).logs
    (all_places, all_heads), (places, heads) = seen
    assert len(all_places) > len(places) == 5
    assert set(heads.tolist()) == set(all_heads.tolist()) == {0, 1}
    assert {tuple(of) for of in places.tolist()} <= {tuple(of) for of in all_places.tolist()}
    assert some["shared_places"] == whole["shared_places"]


def test_what_predicts_hidden_patches_may_leave_the_features_after_a_block():
    models = {depth: build_pretrainer(config(reconstruction_depth=depth)) for depth in (0, 1, 2)}
    views = view(0), view(1, channels=3)
    logs = {depth: model(views, generator()).logs for depth, model in models.items()}
    assert logs[0] == logs[2]  # of two blocks
    assert logs[1]["reconstruction"] != logs[0]["reconstruction"]
    assert logs[1]["contrastive"] == logs[0]["contrastive"]
    # From the first block on, the second has nothing to do with the prediction.
    with torch.no_grad():
        models[1].backbone.blocks[1].mlp[0].weight.zero_()
    again = models[1](views, generator()).logs
    assert again["reconstruction"] == logs[1]["reconstruction"]
    assert again["contrastive"] != logs[1]["contrastive"]


def test_a_step_learns_to_tell_places_of_two_contrasts_of_the_same_volume():
    model = build_pretrainer(config(contrastive_weight=1.0))
    volume = torch.rand(2, 1, 16, 16, 16, generator=generator(5))
    views = tuple(PairedView(of, of, affine().expand(2, 4, 4)) for of in (volume, 1 - volume))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        output = model(views, generator())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.logs["contrastive"].detach()))
    assert losses[-1] < losses[0] - 0.3


def crossing(weight=0.5):
    """A model whose cross-modal heads do not predict almost 0, as they do at first."""
    model = build_pretrainer(config(cross_reconstruction_weight=weight))
    for parameter in model.cross_heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator(9))
    return model


def turned(shift):
    """An affine by which no token lies on another one's centre."""
    matrix = affine(shift, spacing=1.1)
    matrix[0, 1], matrix[1, 0] = 0.2, -0.2
    return matrix


def test_hidden_patches_are_predicted_from_the_other_view_as_by_plain_loops():
    model = crossing().requires_grad_(False)
    views = view(0), view(1, channels=3, to_mm=turned((-2, 3, 1)))
    views[0].clean[:, :, :4, :8] = 0.0  # air, which does not count
    drawn = generator()
    levels = [model.draw(of.seen, drawn) for of in views]
    deep = [model.backbone(of.seen, level.hidden).double() for of, level in zip(views, levels, strict=True)]
    tokens = list(itertools.product(range(4), repeat=3))

    def patch(of, sample, token):
        where = tuple(slice(PATCH * side, PATCH * side + PATCH) for side in token)
        return views[of].clean[(sample, slice(None), *where)].flatten(1).double()

    def counts(of, sample, token):
        return bool(levels[of].visible[(sample, *token)]) and bool(
            (patch(of, sample, token).std(1, correction=0) >= 0.02).any()
        )

    def feature(of, sample, token):
        return deep[of][(sample, slice(None), *token)]

    directions = []
    for target, source in ((0, 1), (1, 0)):
        head = model.cross_heads[str(views[target].clean.shape[1])].double()
        errors, way = [], torch.linalg.inv(views[source].to_mm[0].double()) @ views[target].to_mm[0].double()
        for sample, token in itertools.product(range(2), tokens):
            if not levels[target].hidden[(sample, *token)]:
                continue
            # 1. Where the token lies among those of the other view, and what these show around it.
            voxel = [(side + 0.5) * PATCH - 0.5 for side in token]
            place = ((way @ torch.tensor([*voxel, 1.0]).double())[:3] + 0.5) / PATCH - 0.5
            total, found = 0.0, 0.0
            for other in tokens:
                weight = float((1 - (place - torch.tensor(other)).abs()).clamp_min(0).prod())
                if weight and counts(source, sample, other):
                    total, found = total + weight, found + weight * feature(source, sample, other)
            if total < 0.5:
                continue
            # 2. The contrast of the view: the mean of what it shows itself.
            shown = [feature(target, sample, other) for other in tokens if counts(target, sample, other)]
            predicted = head(torch.cat([found / total, sum(shown) / len(shown)])).view(-1, PATCH**3)
            # 3. Each channel of the patch, normalised by itself, where it varies.
            for true, guess in zip(patch(target, sample, token), predicted, strict=True):
                std = true.std(correction=0)
                if std >= 0.02:
                    errors.append(float(((guess - (true - true.mean()) / std) ** 2).mean()))
        assert len(errors) >= 5
        directions.append(sum(errors) / len(errors))
    model.cross_heads.float()
    assert float(model(views, generator()).logs["cross_reconstruction"]) == pytest.approx(sum(directions) / 2, rel=1e-4)


def test_what_is_predicted_across_follows_what_the_other_view_shows():
    model = crossing()
    one, other = view(0), view(1, channels=3, to_mm=turned((-2, 3, 1)))
    before, changed, target = (
        model(views, generator()).logs["cross_reconstruction"]
        for views in (
            (one, other),
            (one._replace(seen=1 - one.seen), other),
            (one, other._replace(clean=torch.rand_like(other.clean))),
        )
    )
    assert before != changed
    assert before != target


def test_without_a_weight_nothing_is_predicted_across_and_all_else_is_the_same():
    without, with_it = build_pretrainer(config()), build_pretrainer(config(cross_reconstruction_weight=0.5))
    weights, more = without.state_dict(), with_it.state_dict()
    assert {name.split(".")[0] for name in more.keys() - weights.keys()} == {"cross_heads"}
    assert all(torch.equal(value, more[name]) for name, value in weights.items())
    views = view(0), view(1, channels=3)
    plain, crossed = (model(views, generator()).logs for model in (without, with_it))
    assert crossed.keys() - plain.keys() == {"cross_reconstruction"}
    assert all(torch.equal(plain[name], crossed[name]) for name in plain.keys() - {"loss"})
    torch.testing.assert_close(crossed["loss"], plain["loss"] + 0.5 * crossed["cross_reconstruction"])


def test_views_that_share_nothing_predict_nothing_across_and_keep_the_graph():
    model = crossing()
    output = model((view(0), view(1, to_mm=affine((500, 0, 0)))), generator())
    assert output.logs["cross_reconstruction"] == 0
    output.loss.backward()
    assert all(parameter.grad.abs().max() == 0 for parameter in model.cross_heads["1"].parameters())


def test_predicting_across_trains_backbone_and_heads():
    model = crossing()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("cross_heads", "backbone")))
    views = view(0), view(1, channels=3, to_mm=turned((-2, 3, 1)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    errors = []
    for _ in range(15):
        output = model(views, generator())
        optimizer.zero_grad()
        output.loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.cross_heads.parameters())
        optimizer.step()
        errors.append(float(output.logs["cross_reconstruction"]))
    assert errors[-1] < 0.8 * errors[0]


def test_supervised_synthesis_learns_the_tissue_of_each_voxel():
    model = build_pretrainer(config("supervised_synthesis"))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"backbone", "head"}
    of = view(0)
    of = of._replace(seen=of.labels[:, None].float() / 18)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model((of, of), generator())
    for _ in range(15):
        optimizer.zero_grad()
        output = model((of, of), generator())
        output.loss.backward()
        optimizer.step()
    assert output.loss < first.loss - 0.1
    assert {"cross_entropy", "dice", "accuracy"} <= set(output.logs)
    pictures = model.pictures(of.seen, generator())
    assert pictures["tissues"].shape == of.seen.shape


@pytest.mark.parametrize("depth", [0, 1])
def test_a_picture_is_predicted_from_the_features_that_training_predicts_from(depth):
    model = build_pretrainer(config(reconstruction_depth=depth, contrastive_weight=0.0)).eval()
    seen = view(1).seen
    hidden = model.draw(seen, generator()).hidden
    features, inner = model.backbone.forward_intermediates(seen, hidden, [depth or 2])
    expected = model.backbone.norm(inner[0].movedim(1, -1)).movedim(-1, 1)
    assert torch.equal(model._features(seen, hidden), expected)
    assert torch.equal(expected, features) == (depth == 0)
    with torch.no_grad():
        picture = model.pictures(seen, generator())["reconstruction"]
        model._features = lambda *_: expected
        assert torch.equal(picture, model.pictures(seen, generator())["reconstruction"])


def test_a_negative_weight_is_refused():
    for name in ("contrastive_weight", "cross_reconstruction_weight"):
        with pytest.raises(InputError, match=f"{name} is at least 0, got -1"):
            build_pretrainer(config(**{name: -1}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": None}, "data.pairs and objective go together"),
        ({"data": {"crop_size": [16] * 3}}, "one of data.sources and data.pairs is needed"),
        (
            {"data": {"pairs": PAIRS, "sources": [{"path": "x", "modality": "mri"}]}},
            "one of data.sources and data.pairs",
        ),
        ({"data": {"pairs": PAIRS | {"contrasts": ["CT"]}}}, "'data.pairs.contrasts'"),
        ({"data": {"pairs": PAIRS | {"contrasts": ["T1", "T1"]}}}, "of different contrasts"),
        ({"data": {"pairs": PAIRS | {"shared": 1.5}}}, "'data.pairs.shared'"),
        ({"objective": {"name": "other"}}, "unknown objective 'other'; known: cross_contrast, supervised_synthesis"),
        ({"objective": {"name": "cross_contrast", "depth": 3}}, "objective 'cross_contrast' takes"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(change, message):
    raw = {"data": {"pairs": PAIRS}, "objective": {"name": "cross_contrast"}}
    with pytest.raises(InputError, match=message) as caught:
        check_config({key: value for key, value in {**raw, **change}.items() if value is not None})
    assert "\n" not in str(caught.value)
