"""Places of two views are matched by their affines, and nothing hidden reaches what is compared."""

import numpy as np
import pytest
import torch

from voxelwave.errors import InputError
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
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


def test_hidden_voxels_change_neither_loss_nor_places():
    model = build_pretrainer(config())
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
    model = build_pretrainer(config())
    output = model((view(0), view(1, to_mm=affine((500, 0, 0)))), generator())
    assert output.logs["contrastive"] == output.logs["shared_places"] == 0
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.contrastive.parameters())


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


def test_supervised_synthesis_learns_the_tissue_of_each_voxel():
    model = build_pretrainer(config("supervised_synthesis"))
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
