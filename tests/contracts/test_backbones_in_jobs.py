"""Every registered backbone goes through every job by its name; the jobs themselves are tested on WaveFormer."""

import json

import numpy as np
import pytest
import torch

from support.command import voxelwave
from support.finetuning_runs import config_of, list_cases, results
from support.finetuning_runs import run as finetuned
from support.pretraining_runs import QUIET, named, records, tiny
from voxelwave import load_backbone
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.registry import BACKBONES

SMALL = {"residual_cnn": {"patch_size": 4, "embed_dim": 24, "depth": 2}}
OTHERS = [name for name in BACKBONES.names() if name != "waveformer"]


@pytest.fixture(scope="module", params=OTHERS)
def pretrained(request, heads, tmp_path_factory):
    """The folder of a run of six steps."""
    raw = tiny(heads, tmp_path_factory.mktemp(request.param))
    raw["model"]["backbone"] = {"name": request.param, **SMALL.get(request.param, {})}
    config = named(raw, "pretrained", epochs=1)
    assert pretrain(config, console=QUIET)
    assert np.isfinite([record["loss"] for record in records(config)]).all()
    return config.run_folder()


def test_a_run_leaves_a_backbone_of_which_every_weight_loads(pretrained):
    features = load_backbone(pretrained)
    assert len(features.report.loaded) == len(features.backbone.state_dict())
    for channels in (1, 3):
        assert features(torch.rand(1, channels, 16, 16, 16))[-1].shape == (1, 24, 4, 4, 4)


@pytest.mark.parametrize("objective", ["cross_contrast", "supervised_synthesis"])
def test_it_trains_on_pairs(pretrained, heads, tmp_path, objective):
    architecture = json.loads((pretrained / "backbone.json").read_text())["architecture"]
    raw = tiny(heads, tmp_path)
    raw["model"]["backbone"] = {"name": architecture["name"], **architecture["settings"]}
    raw["data"] = {
        "crop_size": [16, 16, 16],
        "num_workers": 0,
        "pairs": {"cases": str(heads), "contrasts": ["T1", "CT"], "spacing_mm": 2.0},
    }
    config = named({**raw, "objective": {"name": objective}}, objective, max_steps=2)
    assert pretrain(config, console=QUIET)
    assert len(load_backbone(config.run_folder())(torch.rand(1, 3, 16, 16, 16))) == 2


@pytest.mark.parametrize("train", ["full", "frozen"])
def test_it_is_finetuned_and_predicts(pretrained, heads, tmp_path, train):
    cases = list_cases(heads, tmp_path)
    backbone = {"path": str(pretrained), "train": train}
    folder = finetuned(
        config_of(cases, tmp_path, "run", backbone=backbone, training={"max_steps": 2, "validate_every_steps": 2})
    )
    assert results(folder)
    ended = voxelwave("predict", folder, heads / "mri", tmp_path / "out")
    assert ended.code == 0, ended.err


def test_it_is_embedded_and_probed(pretrained, heads, tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.evaluation.estimates.RESAMPLES", 20)
    for arguments in (("embed", pretrained, heads, tmp_path / "table.csv"), ("probe", pretrained, heads)):
        ended = voxelwave(*arguments)
        assert ended.code == 0, ended.err


@pytest.mark.parametrize("file_format", ["torch", "onnx"])
def test_it_is_exported_and_computes_what_it_did(pretrained, tmp_path, file_format):
    out = tmp_path / {"torch": "model.pt2", "onnx": "model.onnx"}[file_format]
    ended = voxelwave("export", pretrained, out, "--format", file_format, "--in-channels", 1)
    assert ended.code == 0, ended.err
    assert "differs from PyTorch by at most" in ended.out
