import json
import os
import pickle

import pytest
import torch

from voxelwave import load_backbone
from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.downstream.embedding import untrained_twin
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.load_backbone import DESCRIPTION, WEIGHTS, save_backbone
from voxelwave.downstream.weights import read_weights
from voxelwave.engine.checkpoint import save_checkpoint
from voxelwave.errors import InputError
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.run import pretrain

SETTINGS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def exported(folder, volumes=None):
    backbone = WaveFormer3D(**SETTINGS)
    architecture = {"name": "waveformer", "in_channels": [1, 3], "settings": SETTINGS}
    described = {"architecture": architecture, "data": {"volumes": volumes or {"mri": 5, "ct": 3}}}
    save_backbone(folder, backbone.state_dict(), described)
    return folder, backbone


@pytest.fixture
def run(tmp_path):
    return exported(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, heads):
    """A finished pretraining run."""
    out = tmp_path_factory.mktemp("runs")
    raw = {
        "run": {"name": "tiny", "out_dir": str(out), "tensorboard": False, "license": "CC-BY-4.0"},
        "data": {"crop_size": [16] * 3, "num_workers": 0, "spacing_mm": 2.0},
        "model": {"backbone": SETTINGS, "sparse": "gather", "encoder_widths": [8], "decoder_width": 8},
        "training": {"epochs": 1},
    }
    raw["data"]["sources"] = [{"path": str(heads / name), "modality": name} for name in ("mri", "ct")]
    pretrain(check_config(raw))
    return out / "tiny"


def test_a_saved_backbone_computes_what_it_did_from_either_path(run):
    folder, backbone = run
    volume = torch.rand(1, 3, 16, 8, 12)
    for path in (folder, folder / WEIGHTS, str(folder)):
        assert torch.equal(load_backbone(path)(volume)[-1], backbone(volume))


def test_run_folder_export_and_every_checkpoint_give_the_same_backbone(trained):
    volume = torch.rand(1, 1, 16, 16, 16)
    of_run = load_backbone(trained)
    for name in (WEIGHTS, "last.pth", "best_model.pth", "checkpoint_epoch_1.pth"):
        other = load_backbone(trained / name)
        assert torch.equal(other(volume)[-1], of_run(volume)[-1])
        assert sorted(other.report.loaded) == sorted(of_run.report.loaded) == sorted(other.backbone.state_dict())
        assert not other.report.missing
        assert not other.report.unexpected
        assert {**other.description, "sha256": of_run.description["sha256"]} == of_run.description
    checkpoint = load_backbone(trained / "last.pth").report
    assert checkpoint.left_out["decoder.norm.weight"] == "serves pretraining only"


def test_an_unfinished_run_gives_its_best_checkpoint(trained, tmp_path):
    for name in ("best_model.pth", "last.pth"):
        os.link(trained / name, tmp_path / name)
    assert load_backbone(tmp_path).report.source.endswith("best_model.pth")


def test_the_description_is_enough_to_use_the_file(trained):
    described = json.loads((trained / DESCRIPTION).read_text())
    assert described["preprocessing"]["spacing_mm"] == 2.0
    assert described["preprocessing"]["orientation"] == "RAS"
    modalities = described["preprocessing"]["modalities"]
    assert modalities["mri"] == {"channels": 1, "range": [0, 1], "percentiles": [0.5, 99.5]}
    assert modalities["ct"]["windows_hu"][0] == [40, 80]
    assert described["data"] == {"volumes": {"mri": 5, "ct": 3}, "steps": 6}
    assert described["license"] == "CC-BY-4.0"
    assert described["architecture"]["settings"]["embed_dim"] == 24
    assert {"voxelwave", "sha256"} <= described.keys()


def test_a_stem_for_another_count_gives_a_repeated_volume_the_features_of_the_single_one(run):
    folder, _ = run
    volume = torch.rand(1, 1, 8, 8, 8)
    two = load_backbone(folder, in_channels=2)
    torch.testing.assert_close(two(volume.expand(-1, 2, -1, -1, -1))[-1], load_backbone(folder)(volume)[-1])
    assert two.report.adapted["stems.2.weight"] == "stems.1.weight repeated 2 times and divided by 2"
    assert two.report.left_out == dict.fromkeys(
        ["stems.1.weight", "stems.1.bias", "stems.3.weight", "stems.3.bias"], "of another channel count"
    )
    assert two.in_channels == (2,)
    assert "2 adapted" in str(two.report)


def test_a_new_stem_is_random_and_said_to_be(run):
    folder, backbone = run
    new = load_backbone(folder, in_channels=4, stem="new")
    assert new.report.adapted == dict.fromkeys(["stems.4.weight", "stems.4.bias"], "new, random")
    assert torch.equal(new.backbone.blocks[0].mlp[0].weight, backbone.blocks[0].mlp[0].weight)


def test_a_stem_that_saw_no_volume_is_not_taken_for_a_trained_one(tmp_path):
    folder, backbone = exported(tmp_path, {"mri": 7})
    assert load_backbone(folder).in_channels == (1,)
    ct = load_backbone(folder, in_channels=3)
    repeated = backbone.stems["1"].weight.repeat(1, 3, 1, 1, 1) / 3
    assert torch.equal(ct.backbone.stems["3"].weight, repeated)
    assert set(ct.report.adapted) == {"stems.3.weight", "stems.3.bias"}


def test_a_stem_that_nothing_can_be_repeated_for_is_random_only_where_that_is_asked_for(tmp_path):
    folder, _ = exported(tmp_path, {"ct": 7})
    with pytest.raises(InputError, match=r"trained on volumes of 3 channels, and has no patch embedding for 1 to take"):
        load_backbone(folder, in_channels=1)
    assert "new, random" in load_backbone(folder, in_channels=1, stem="new").report.adapted.values()


def test_the_pyramid_has_a_level_for_each_depth(run):
    pyramid = load_backbone(run[0])
    levels = pyramid(torch.rand(2, 1, 8, 16, 12))
    assert pyramid.depths == (1, 2)
    assert pyramid.channels == (24, 24)
    assert pyramid.strides == (4, 4)
    assert [level.shape for level in levels] == [(2, 24, 2, 4, 3)] * 2
    assert len(load_backbone(run[0], depths=[2])(torch.rand(1, 1, 8, 8, 8))) == 1
    for level in levels:  # each through the norm, which begins as a plain one
        torch.testing.assert_close(level.mean(1), torch.zeros(2, 2, 4, 3), atol=1e-5, rtol=0)


def test_blocks_above_the_deepest_level_are_left_out(run):
    volume = torch.rand(2, 1, 8, 16, 12)
    cut, whole = load_backbone(run[0], depths=[1]), load_backbone(run[0])
    torch.testing.assert_close(cut(volume)[0], whole(volume)[0])
    torch.testing.assert_close(cut.backbone(volume), whole(volume)[0])
    assert (len(cut.backbone.blocks), cut.backbone.depth) == (1, 1)
    assert {key.rpartition("blocks.")[2][:2] for key in cut.report.left_out} >= {"1."}
    assert not [key for key in cut.report.loaded if "blocks.1." in key]
    twin = untrained_twin(cut, seed=0)
    assert (len(twin.backbone.blocks), len(whole.backbone.blocks)) == (1, 2)
    assert len(FeaturePyramid(whole.backbone, depths=[1]).backbone.blocks) == 1
    assert len(whole.backbone.blocks) == 2
    for depths in ([0], [3], [2, 1], []):
        with pytest.raises(ValueError, match="depths rise within 0…2, and one is above 0"):
            load_backbone(run[0], depths=depths)


def test_prefixes_of_wrappers_are_stripped(trained, tmp_path):
    state = torch.load(trained / "last.pth", weights_only=True)
    state["model"] = {f"_forward_module._orig_mod.{key}": value for key, value in state["model"].items()}
    save_checkpoint(tmp_path / "wrapped.pth", state)
    report = load_backbone(tmp_path / "wrapped.pth").report
    assert sorted(report.loaded) == sorted(load_backbone(trained).report.loaded)


def test_volumes_of_another_size_than_pretrained_on(trained):
    pyramid = load_backbone(trained)
    assert pyramid(torch.rand(1, 1, 96, 96, 96))[-1].shape[2:] == (24, 24, 24)
    with pytest.raises(ValueError, match="patch size 4"):
        pyramid(torch.rand(1, 1, 50, 96, 96))


def damage_weights(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def change_description(change):
    def harm(folder):
        description = json.loads((folder / DESCRIPTION).read_text())
        del description["description_sha256"]  # as whoever edits it on purpose does
        change(description["architecture"])
        (folder / DESCRIPTION).write_text(json.dumps(description))

    return harm


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_weights, "is damaged, or not the file that"),
        (
            change_description(lambda a: a.pop("settings")),
            "backbone.json is damaged: key 'architecture.settings' is missing",
        ),
        (change_description(lambda a: a.update(name="resnet")), "unknown backbone 'resnet'"),
        (
            change_description(lambda a: a.update(in_channels=[])),
            "key 'architecture.in_channels': List should have at least 1 item",
        ),
        (
            change_description(lambda a: a.update(in_channels="13")),
            "key 'architecture.in_channels': .* a valid list, got '13'",
        ),
        (change_description(lambda a: a.update(name=["waveformer"])), "key 'architecture.name': .* a valid string"),
        (change_description(lambda a: a["settings"].update(depth=3)), "blocks.2.* is missing .and 1. more.; it is"),
        (change_description(lambda a: a["settings"].update(depth=1)), "blocks.1.* is unexpected"),
        (
            change_description(lambda a: a["settings"].update(embed_dim=12)),
            "is missing .and .* of another architecture",
        ),
        (change_description(lambda a: a["settings"].update(name="x")), "unknown key 'name'"),
        (change_description(lambda a: a["settings"].update(self="x")), "unknown key 'self'"),
        (lambda folder: (folder / DESCRIPTION).write_text("{"), "backbone.json is damaged"),
        (lambda folder: (folder / DESCRIPTION).write_text("[" * 10**5), "backbone.json is damaged: it is nested"),
        (lambda folder: (folder / DESCRIPTION).write_text("[]"), "backbone.json is damaged"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no backbone in .*a run folder holds one of"),
        (lambda folder: (folder / DESCRIPTION).unlink(), "no backbone.json in"),
    ],
)
def test_a_damaged_backbone_is_one_clear_line(run, harm, message):
    folder, _ = run
    harm(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_backbone(folder)
    assert "\n" not in str(caught.value)


def test_of_a_description_with_one_flipped_bit_nothing_else_is_read(run):
    folder, _ = run
    path = folder / DESCRIPTION
    content, expected = path.read_bytes(), read_weights(folder / WEIGHTS, path)[1]
    for bit in range(0, 8 * len(content), 13):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read = read_weights(folder / WEIGHTS, path)[1]
        except InputError:
            continue
        # Where the bit is in the name of the checksum, it is one more key.
        assert {key: read.get(key) for key in expected} == expected, bit


def test_what_does_not_fit_is_reported_where_that_is_asked_for(run):
    folder, _ = run
    change_description(lambda architecture: architecture["settings"].update(depth=1))(folder)
    report = load_backbone(folder, strict=False).report
    assert report.unexpected
    assert all("blocks.1." in key for key in report.unexpected)
    assert not report.missing


def test_a_stem_of_another_patch_size_is_missing_and_not_called_adapted(run):
    folder, _ = run
    change_description(lambda architecture: architecture["settings"].update(patch_size=8))(folder)
    with pytest.raises(ValueError, match=r"stems.4.weight is missing"):
        load_backbone(folder, in_channels=4)


def test_weights_that_are_not_finite_are_refused(trained, tmp_path):
    state = torch.load(trained / "last.pth", weights_only=True)
    state["model"]["backbone.norm.bias"][3] = torch.nan
    save_checkpoint(tmp_path / "nan.pth", state)
    with pytest.raises(ValueError, match=r"nan.pth: weight norm.bias holds values that are not finite"):
        load_backbone(tmp_path / "nan.pth")


@pytest.mark.parametrize(
    "model", [{"backbone.stems.x": torch.zeros(3)}, {3: torch.zeros(3)}, {"backbone.a": "b"}, None]
)
def test_whatever_a_checkpoint_calls_its_model_is_one_clear_line(trained, tmp_path, model):
    state = torch.load(trained / "last.pth", weights_only=True)
    save_checkpoint(tmp_path / "odd.pth", {**state, "model": model})
    with pytest.raises(ValueError, match=r"odd\.pth (does not fit|is not the checkpoint)") as caught:
        load_backbone(tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


def test_arguments_of_another_type_are_one_clear_line(run):
    with pytest.raises(ValueError, match="in_channels is at least 1"):
        load_backbone(run[0], in_channels=0)


def test_an_empty_load_is_an_error_even_where_nothing_is_strict(trained, tmp_path):
    state = torch.load(trained / "last.pth", weights_only=True)
    state["model"] = {"backbone.layers.0.weight": torch.zeros(3)}
    save_checkpoint(tmp_path / "foreign.pth", state)
    with pytest.raises(ValueError, match="does not fit the backbone 'waveformer'"):
        load_backbone(tmp_path / "foreign.pth", strict=False)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_nothing_is_executed(tmp_path, protocol):
    file, harmed = tmp_path / "model.pth", tmp_path / "harmed"
    if protocol == "torch":
        torch.save({"format_version": 1, "model": Bomb(harmed)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(harmed)))
    with pytest.raises(ValueError, match="more than tensors and plain values, and is refused") as caught:
        load_backbone(file)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to set it to False
    assert not harmed.exists()


def test_other_files_are_one_clear_line(trained, tmp_path):
    half = (trained / "last.pth").read_bytes()[:5000]
    for name, content, message in (
        ("half.pth", half, "is not a readable checkpoint"),
        ("text.pth", b"hello", "is not a readable checkpoint"),
        ("gone.pth", None, "no checkpoint at"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            load_backbone(tmp_path / name)
        assert "\n" not in str(caught.value)
    save_checkpoint(tmp_path / "other.pth", {"model": {}})
    with pytest.raises(ValueError, match="is not the checkpoint of a pretraining run"):
        load_backbone(tmp_path / "other.pth")
    save_checkpoint(tmp_path / "tuned.pth", {"model": {}, "config": {"task": {"name": "segmentation"}}})
    with pytest.raises(ValueError, match="is of a fine-tuned model, and"):
        load_backbone(tmp_path / "tuned.pth")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="has checkpoint format None"):
        load_backbone(tmp_path / "foreign.pth")
