import math
import socket

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxelwave.backbones.embedding2d import MRIEmbeddingModel, TimmEmbedding
from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.registry import EMBEDDINGS

SMALL = {"embed_dim": 12, "widths": (8, 16)}


def images(channels=4, size=(32, 32), batch_size=3):
    return torch.randn((batch_size, channels, *size), generator=torch_generator(0, channels))


def small(in_channels=4, seed=0, **settings):
    torch.manual_seed(seed)
    return MRIEmbeddingModel(in_channels, **{**SMALL, **settings})


def by_hand(model, seen, groups, use_mlp_head):
    """The layers of the model one by one, from its state dict alone."""
    weights = iter(model.state_dict().values())
    grid = seen
    for count in groups:
        grid = F.conv2d(grid, next(weights), next(weights), stride=2, padding=1)
        grid = F.gelu(F.group_norm(grid, count, next(weights), next(weights)))
    vector = F.linear(grid.mean((2, 3)), next(weights), next(weights))
    if use_mlp_head:
        vector = F.linear(F.gelu(vector), next(weights), next(weights))
    assert next(weights, None) is None
    return vector / vector.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("use_mlp_head", [False, True])
def test_the_default_model_is_a_stem_four_stages_a_mean_and_a_head(use_mlp_head):
    model = MRIEmbeddingModel(6, use_mlp_head=use_mlp_head)
    seen = images(6, (64, 48))
    torch.testing.assert_close(model(seen), by_hand(model, seen, (8, 8, 8, 8, 8), use_mlp_head))
    widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [32, 32, 64, 128, 256]
    sides = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert sides == ([(256, 512), (512, 256)] if use_mlp_head else [(256, 256)])


def test_weights_of_a_seed_do_not_depend_on_the_coils_beyond_the_first_convolution():
    two, three = small(4).state_dict(), small(6).state_dict()
    different = [
        name for name in two if two[name].shape != three[name].shape or not torch.equal(two[name], three[name])
    ]
    assert different == ["stem.0.weight"]


def test_convolutions_begin_as_kaiming_and_linears_as_xavier_would_have_them():
    model = MRIEmbeddingModel(16, use_mlp_head=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = 9 * module.in_channels
            assert float(module.weight.detach().std() * math.sqrt(fan_in / 2)) == pytest.approx(1, abs=0.04)
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.99 * bound < float(module.weight.detach().abs().max()) <= bound
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert not module.bias.any()


@pytest.mark.parametrize("width", [*range(1, 70), 96, 250, 256])
def test_any_width_has_groups_that_leave_something_at_a_single_place(width):
    norm = MRIEmbeddingModel(2, widths=(width,)).stem[1]
    assert width % norm.num_groups == 0
    assert norm.num_groups == 1 or width // norm.num_groups >= 4
    if width % 32 == 0:
        assert norm.num_groups == 8


@pytest.mark.parametrize(("channels", "size"), [(2, (33, 17)), (16, (1, 1)), (4, (7, 40)), (1, (16, 16))])
def test_any_number_of_coils_and_any_size_gives_unit_vectors(channels, size):
    vectors = small(channels)(images(channels, size, batch_size=1))
    assert vectors.shape == (1, 12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1))


def test_unit_length_is_a_choice_of_the_model_and_of_each_call():
    model, plain = small(), small(normalize=False)
    raw = plain(images())
    assert not torch.allclose(raw.norm(dim=1), torch.ones(3), atol=0.01)
    assert torch.equal(model(images(), normalize=False), raw)
    torch.testing.assert_close(plain(images(), normalize=True), raw / raw.norm(dim=1, keepdim=True))
    assert torch.equal(plain(images(), normalize=True), model(images()))


def test_vectors_of_half_precision_are_of_unit_length_in_single():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = small()(images())
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_embed_drops_nothing_needs_no_gradient_and_leaves_every_mode_as_it_was():
    model = small(dropout=0.5).train()
    model.stages[0].eval()
    modes = [module.training for module in model.modules()]
    first, again = model.embed(images()), model.embed(images())
    assert not first.requires_grad
    assert torch.equal(first, again)
    assert torch.equal(first, small(dropout=0.0)(images()))
    assert [module.training for module in model.modules()] == modes
    assert not torch.equal(model(images()), model(images()))


def test_embed_gives_unit_length_unless_it_is_told_otherwise():
    model = small(normalize=False)
    raw = model(images())
    assert torch.equal(model.embed(images()), F.normalize(raw, dim=-1))
    assert torch.equal(model.embed(images(), normalize=True), F.normalize(raw, dim=-1))
    for raws in (model.embed(images(), normalize=False), model.embed(images(), normalize=None)):
        assert torch.equal(raws, raw)


@pytest.mark.parametrize("order", [[0], [1, 0], [2, 0, 3, 1], [1, 0, 3, 2, 5, 4]])
def test_where_coils_are_combined_their_order_strength_and_quarters_of_their_phase_change_nothing(order):
    """16 filters are four fours, so that of six coils 0 and 4 share one, and 1 and 5."""
    torch.manual_seed(0)
    model, seen = MRIEmbeddingModel(2 * len(order), embed_dim=12, widths=(16, 24)), images(2 * len(order))
    before = model(seen).detach()
    model.combine_coils()
    vectors = model(seen).detach()
    assert (vectors - before).abs().max() > 0.01
    assert torch.pdist(vectors).min() > 1e-3
    coils = torch.view_as_complex(seen.unflatten(1, (-1, 2)).movedim(2, -1).contiguous())[:, order]
    if len(order) <= 4:
        coils = coils * torch.tensor([1j, -2.0, -3j, 0.5])[: len(order), None, None]
    changed = torch.view_as_real(coils).movedim(-1, 2).flatten(1, 2)
    torch.testing.assert_close(model(changed).detach(), vectors, atol=1e-3, rtol=0)


def test_a_centred_model_has_the_mean_vector_0_and_differs_as_before():
    model, seen = small(4), images(batch_size=8) + 3
    before = model(seen, normalize=False).detach()
    model.centre(seen)
    after = model(seen, normalize=False).detach()
    assert float(before.mean(0).norm()) > 0.1
    torch.testing.assert_close(after, before - before.mean(0), atol=1e-5, rtol=0)
    assert model.head[-1].bias.requires_grad


def test_a_nan_in_one_image_reaches_no_other():
    model, seen = small(), images()
    clean = model.embed(seen)
    seen[1, 0, 3, 3] = torch.nan
    found = model.embed(seen)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("wrong", [{"embed_dim": 0}, {"widths": ()}, {"widths": (8, 0)}, {"dropout": 1.0}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match="at least"):
        EMBEDDINGS.build("mri_embedding", 4, **wrong)


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_tiny", "deit_tiny_patch16_224"])
def test_an_encoder_of_timm_reads_the_coils_of_small_images_without_a_network(encoder, monkeypatch):
    def refuse(*_):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.manual_seed(0)
    model = EMBEDDINGS.build("timm", 6, encoder=encoder, embed_dim=12, image_size=32)
    first = next(module for module in model.encoder.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 6
    vectors = model.embed(images(6))
    assert vectors.shape == (3, 12)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert torch.pdist(vectors).min() > 1e-4
    assert model.training
    with pytest.raises(ValueError, match="reads 6 channels"):
        model.embed(images(4))
    if encoder.startswith("deit"):
        with pytest.raises(ValueError, match=r"made for images of \(32, 32\) pixels, got \(48, 32\)"):
            model.embed(images(6, (48, 32)))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"encoder": "resnet81"}, "timm has no encoder 'resnet81': did you mean .*resnet18"),
        ({"encoder": "hf-hub:timm/resnet18"}, "timm has no encoder"),
        ({"encoder": "deit_tiny_patch16_224"}, "made for one image size: give image_size"),
        ({"encoder": "deit_tiny_patch16_224", "image_size": (32, 40)}, r"patches of \(16, 16\) pixels"),
    ],
)
def test_what_timm_cannot_make_is_said_in_one_line(settings, reason):
    with pytest.raises(InputError, match=reason) as refused:
        EMBEDDINGS.build("timm", 6, **settings)
    assert "\n" not in str(refused.value)


def test_a_head_of_two_layers_is_there_for_timm_as_well():
    model = TimmEmbedding(2, embed_dim=12, use_mlp_head=True, normalize=False)
    sides = [(m.in_features, m.out_features) for m in model.head if isinstance(m, nn.Linear)]
    assert sides == [(512, 24), (24, 12)]
    raw = model.embed(images(2))
    torch.testing.assert_close(model.eval()(images(2), normalize=True), F.normalize(raw))
