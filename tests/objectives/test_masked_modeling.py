import pytest
import torch

from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer, count_parameters

PATCH = 4


def pretrainer(target="voxels", seed=0, **sections):
    config = {
        "run": {"seed": seed},
        "data": {"sources": [{"path": "x", "modality": "mri"}], "crop_size": [16, 16, 16]},
        "model": {
            "backbone": {
                "name": "waveformer",
                "patch_size": PATCH,
                "embed_dim": 24,
                "depth": 2,
                "num_heads": 2,
            },
            "target": target,
            "encoder_widths": [8, 12],
            "decoder_width": 8,
            **sections,
        },
    }
    return build_pretrainer(check_config(config))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spread(hidden):
    for axis in (1, 2, 3):
        hidden = hidden.repeat_interleave(PATCH, axis)
    return hidden.unsqueeze(1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pattern", ["blocks", "random tokens"])
def test_hidden_voxels_do_not_reach_the_encoder(channels, pattern):
    model, volume = pretrainer(), torch.rand(2, channels, 32, 32, 32)
    hidden = model.draw(volume, generator()).hidden
    if pattern == "random tokens":
        hidden = hidden.flatten(1)[:, torch.randperm(512, generator=generator())].view_as(hidden)
    changed = torch.where(spread(hidden), torch.rand(volume.shape) * 100, volume)
    difference = model.encode(volume, hidden) - model.encode(changed, hidden)
    assert difference.abs().max() == 0.0


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_voxels_do_not_reach_the_prediction(channels):
    model, volume = pretrainer(), torch.rand(2, channels, 32, 32, 32)
    levels = model.draw(volume, generator())
    changed = torch.where(spread(levels.hidden), torch.rand(volume.shape), volume)
    predictions = []
    for x in (volume, changed):
        deep, _ = model.backbone.forward_intermediates(x, levels.hidden)
        predictions.append(model._predict(deep, levels, channels))
    assert torch.equal(*predictions)


def test_encode_returns_visible_tokens_in_raster_order():
    model, volume = pretrainer(), torch.rand(2, 1, 16, 16, 16)
    hidden = model.draw(volume, generator()).hidden
    grid = model.backbone(volume, hidden)
    features = model.encode(volume, hidden)
    for sample in range(2):
        for number, (d, h, w) in enumerate((~hidden[sample]).nonzero().tolist()):
            assert torch.equal(features[sample, number], grid[sample, :, d, h, w])
    assert model.encode(volume).shape == (2, 64, 24)


def test_encode_refuses_unequal_numbers_of_visible_tokens():
    hidden = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    hidden[0, 0] = True
    with pytest.raises(ValueError, match=r"as many visible tokens each, got \[48, 64\]"):
        pretrainer().encode(torch.rand(2, 1, 16, 16, 16), hidden)


@pytest.mark.parametrize("target", ["voxels", "features"])
@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_the_weighted_sum_and_trains_every_part(target, channels):
    model = pretrainer(target)
    output = model(torch.rand(2, channels, 16, 16, 16), generator())
    logs = output.logs
    torch.testing.assert_close(output.loss.detach(), logs["reconstruction"] + 0.5 * logs["contrastive"])
    assert logs["contrastive"] > 0
    output.loss.backward()
    untouched = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"backbone", "encoder", "decoder", "contrastive"} <= trained
    assert untouched <= {"backbone", "heads"}  # the other modality's stem and head, and tokens not needed


@pytest.mark.parametrize("target", ["voxels", "features"])
def test_a_contrast_without_weight_is_not_computed(target, monkeypatch):
    model, volume = pretrainer(target), torch.rand(2, 1, 16, 16, 16)
    with_weight = model(volume, generator()).logs
    model.contrastive_weight = 0.0
    monkeypatch.setattr(model.contrastive, "forward", lambda *_: pytest.fail("it was computed"))
    output = model(volume, generator())
    assert torch.equal(output.loss, output.logs["reconstruction"])
    assert torch.equal(output.logs["reconstruction"], with_weight["reconstruction"])
    assert with_weight.keys() - output.logs.keys() == {"contrastive", "alignment"}
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.contrastive.parameters())


def test_a_generator_repeats_its_masks_and_another_draws_others():
    model, volume = pretrainer(), torch.rand(2, 1, 16, 16, 16)
    first, again, other = (model(volume, generator(seed)).loss for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    first = pretrainer(seed=3).state_dict()
    torch.manual_seed(2)
    again = pretrainer(seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = pretrainer(seed=4).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_feature_target_is_the_output_of_the_last_block_of_the_whole_volume(layer_norm):
    model, volume = pretrainer("features", features={"layer_norm": layer_norm}), torch.rand(2, 1, 16, 16, 16)
    levels = model.draw(volume, generator())
    _, (deep,) = model.backbone.forward_intermediates(volume, None, [2])
    predicted = model.head(model.decode(deep, levels.visible).movedim(1, -1)[levels.hidden])
    target = deep.movedim(1, -1)[levels.hidden]
    if layer_norm:
        target = (target - target.mean(1, keepdim=True)) / target.std(1, correction=0, keepdim=True)
    expected = (predicted - target).square().mean()
    torch.testing.assert_close(model(volume, generator()).logs["reconstruction"], expected, rtol=1e-4, atol=1e-4)


def test_stop_gradient_cuts_the_target():
    volume = torch.rand(2, 1, 16, 16, 16)
    gradients = []
    for stop_gradient in (True, False):
        model = pretrainer("features", features={"stop_gradient": stop_gradient})
        # Hidden features reach the loss through the target alone.
        levels = model.draw(volume, generator())
        _, (deep,) = model.backbone.forward_intermediates(volume, None, [2])
        deep = deep.detach().requires_grad_()
        target = model._target(volume, deep)
        gradients.append(target.requires_grad)
        assert levels.hidden.any()
    assert gradients == [False, True]


def test_teacher_moves_after_the_step_and_is_not_trained():
    model = pretrainer("features", features={"ema_momentum": 0.5})
    volume = torch.rand(2, 1, 16, 16, 16)
    model(volume, generator()).loss.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    before = model.teacher.model.mask_token.clone()
    model.backbone.mask_token.data += 1.0
    model.after_step()
    torch.testing.assert_close(model.teacher.model.mask_token, before + 0.5)


def test_pictures_show_visible_patches_as_they_are_and_hidden_ones_predicted():
    model, volume = pretrainer(), torch.rand(1, 3, 16, 16, 16)
    seen, masked, predicted = model.pictures(volume, generator()).values()
    hidden = spread(model.draw(volume, generator()).hidden).expand_as(volume)
    assert torch.equal(seen, volume)
    assert bool(masked[hidden].isnan().all())
    assert torch.equal(masked[~hidden], volume[~hidden])
    assert torch.equal(predicted[~hidden], volume[~hidden])
    assert bool(predicted[hidden].isfinite().all())


def test_pictures_of_features_have_the_size_of_the_volume_and_hide_what_was_hidden():
    model, volume = pretrainer("features"), torch.rand(2, 1, 16, 16, 16)
    pictures = model.pictures(volume, generator())
    hidden = spread(model.draw(volume, generator()).hidden)
    assert all(picture.shape == volume.shape for picture in pictures.values())
    assert torch.equal(pictures["masked features"].isnan(), hidden)
    visible = pictures["target features"][~hidden]
    assert torch.equal(pictures["predicted features"][~hidden], visible)
    assert float(pictures["target features"].min()) == 0.0
    assert float(pictures["target features"].max()) == 1.0


def test_parts_are_counted_once():
    model = pretrainer()
    assert sum(count_parameters(model).values()) == sum(p.numel() for p in model.parameters())
    assert set(count_parameters(model)) == {"backbone", "encoder", "decoder", "contrastive", "heads"}


def test_two_channels_are_a_clear_error():
    with pytest.raises(ValueError, match="1 or 3"):
        pretrainer()(torch.rand(2, 2, 16, 16, 16), generator())


def test_decoding_switches_no_autocast_on(monkeypatch):
    asked = []
    original = torch.autocast.__init__

    def record(self, device_type, *arguments, enabled=True, **settings):
        asked.append(enabled)
        original(self, device_type, *arguments, enabled=enabled, **settings)

    monkeypatch.setattr(torch.autocast, "__init__", record)
    pretrainer()(torch.rand(1, 1, 16, 16, 16), generator())
    assert asked
    assert not any(asked)


def test_bf16_gradients_are_those_of_fp32_on_a_grid_whose_coarsest_scale_has_sides_of_2():
    gradients = {}
    for precision in ("fp32", "bf16"):
        model = pretrainer(encoder_widths=[8, 12, 16])
        volume = torch.rand(2, 1, 32, 32, 32, generator=generator())
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(volume, generator()).loss
        loss.backward()
        gradients[precision] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, expected in gradients["fp32"].items():
        difference = (gradients["bf16"][name] - expected).norm()
        assert difference <= 0.1 * expected.norm() + 1e-3, name
