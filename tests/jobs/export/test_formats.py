import json
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from support.exported_runs import SEGMENTATION, SETTINGS, run_export, write_backbone, write_model
from voxelwave import __version__, load_backbone
from voxelwave.downstream.export import METADATA_KEY
from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.engine.checkpoint import save_checkpoint
from voxelwave.jobs.pretrain.config import check_config


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("export") / "backbone")


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("export") / "segmentation", SEGMENTATION)


def test_a_backbone_exported_from_a_checkpoint_is_complete_and_the_same(tmp_path, backbone):
    source = load_backbone(backbone)
    raw = {
        "run": {"license": "CC-BY-4.0"},
        "data": {"crop_size": [12, 16, 16], "spacing_mm": 1.25, "sources": [{"path": "x", "modality": "mri"}]},
        "model": {"backbone": SETTINGS},
    }
    # As FSDP or a transposed view would have it: a tensor that is not contiguous.
    weights = {f"backbone.{key}": value for key, value in source.backbone.state_dict().items()}
    weights["backbone.blocks.0.mlp.0.weight"] = weights["backbone.blocks.0.mlp.0.weight"].T.contiguous().T
    checkpoint = {
        "config": check_config(raw).model_dump(mode="json"),
        "voxelwave": "0.0.9",
        "files": {"mri": "5:abc", "ct": "3:def"},
        "step": 6,
        "model": weights | {"decoder.weight": torch.zeros(3)},
    }
    save_checkpoint(tmp_path / "last.pth", checkpoint)
    printed = run_export(tmp_path / "last.pth", tmp_path / "deep" / "out", file_format="safetensors")
    assert "1 left out" in printed
    names = {path.name for path in (tmp_path / "deep" / "out").iterdir()}
    assert names == {"backbone.safetensors", "backbone.json"}
    again = load_backbone(tmp_path / "deep" / "out")
    volume = torch.rand(1, 3, 8, 8, 8)
    assert torch.equal(again(volume)[-1], source(volume)[-1])
    described = json.loads((tmp_path / "deep" / "out" / "backbone.json").read_text())
    assert {"architecture", "preprocessing", "data", "sha256"} <= described.keys()
    assert described["license"] == "CC-BY-4.0"
    assert described["voxelwave"] == "0.0.9"
    assert described["export"] == {"voxelwave": __version__, "adapted": {}}
    assert described["data"] == {"volumes": {"mri": 5, "ct": 3}, "steps": 6}


@pytest.mark.parametrize(("volumes", "count"), [({"mri": 5, "ct": 3}, 2), ({"mri": 5}, 3)])
def test_an_adapted_stem_loads_again_with_the_same_outputs(tmp_path, volumes, count):
    run = write_backbone(tmp_path / "run", volumes)
    run_export(run, tmp_path / "out", file_format="safetensors", in_channels=count)
    again, adapted = load_backbone(tmp_path / "out"), load_backbone(run, in_channels=count)
    volume = torch.rand(1, count, 8, 8, 8)
    assert again.in_channels == (count,)
    assert torch.equal(again(volume)[-1], adapted(volume)[-1])
    assert again.report.adapted == {}
    assert again.description["export"]["adapted"] == adapted.report.adapted != {}


def test_a_random_stem_is_not_exported(tmp_path):
    run = write_backbone(tmp_path / "run", {"ct": 3})
    with pytest.raises(ValueError, match="has no patch embedding for 1 to take or to repeat"):
        run_export(run, tmp_path / "out", file_format="safetensors", in_channels=1)


def test_a_fine_tuned_model_is_exported_with_its_head(tmp_path, segmentation):
    run_export(segmentation / "model.safetensors", tmp_path / "out", file_format="safetensors")
    model, description = load_finetuned(tmp_path / "out")
    volume = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(model(volume), load_finetuned(segmentation)[0](volume))
    assert description["task"]["classes"] == ["background", "brain", "skull"]
    assert description["backbone"]["path"] == "mri"


def test_a_program_of_torch_takes_any_batch_and_holds_the_description(tmp_path, segmentation):
    out = tmp_path / "model.pt2"
    printed = run_export(segmentation, out, file_format="torch", img_size="8,8,12")
    assert "differs from PyTorch by at most" in printed
    extra = {"description.json": ""}
    program = torch.export.load(out, extra_files=extra).module()
    model, _ = load_finetuned(segmentation)
    for batch in (1, 4):
        volume = torch.rand(batch, 1, 8, 8, 12)
        torch.testing.assert_close(program(volume), model(volume))
    assert b"waveformer.py" not in out.read_bytes()
    described = json.loads(extra["description.json"])
    assert described["program"] == {"volume": ["batch", 1, 8, 8, 12], "outputs": ["logits"], "voxelwave": __version__}
    assert described["task"]["classes"][2] == "skull"


def test_an_onnx_file_agrees_with_the_backbone_at_any_batch(tmp_path, backbone, caplog):
    out = tmp_path / "backbone.onnx"
    # 3×4×4 tokens: a grid that wavelet blocks do not tile.
    printed = run_export(backbone, out, file_format="onnx", in_channels=3)
    assert "differs from PyTorch by at most" in printed
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    file = onnx.load(out)
    sides = file.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_param or side.dim_value for side in sides] == ["batch", 3, 12, 16, 16]
    assert b"waveformer.py" not in out.read_bytes()
    onnx.checker.check_model(file, full_check=True)
    described = json.loads(next(entry.value for entry in file.metadata_props if entry.key == METADATA_KEY))
    assert described["preprocessing"]["modalities"]["ct"]["channels"] == 3
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == described["program"]["outputs"]
    features = load_backbone(backbone)
    for batch in (1, 5):
        volume = torch.rand(batch, 3, 12, 16, 16)
        for theirs, ours in zip(session.run(None, {"volume": volume.numpy()}), features(volume), strict=True):
            np.testing.assert_allclose(theirs, ours.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("out", "given", "message"),
    [
        ("x", {"file_format": "tflite"}, "unknown format 'tflite'; known: safetensors, torch, onnx, bundle"),
        ("x.onnx", {"file_format": "torch"}, "torch is written to a file that ends in .pt2, got .*x.onnx"),
        ("x.safetensors", {"file_format": "safetensors"}, "safetensors is written to a folder"),
        ("there", {"file_format": "bundle"}, "there exists already: delete it, or choose another place"),
        ("x", {"file_format": "bundle", "img_size": "16"}, "--img-size is for torch and onnx"),
        ("x.pt2", {"file_format": "torch"}, "torch takes one channel count, and the model 2: add --in-channels 1"),
        ("x.pt2", {"file_format": "torch", "in_channels": 1, "img_size": "10"}, "multiples of the patch 4, got 10"),
        ("x.pt2", {"file_format": "torch", "in_channels": 1, "img_size": "8,8"}, "is one side or three .*, got 8,8"),
        ("x.pt2", {"file_format": "torch", "in_channels": 1, "img_size": "big"}, "is one side or three .*, got big"),
        ("x", {"file_format": "bundle", "in_channels": 2}, "takes 2 channels: mri has 1, ct has 3"),
        ("x", {"file_format": "bundle", "in_channels": 0}, "in_channels is at least 1"),
    ],
)
def test_what_cannot_be_exported_is_one_clear_line_and_leaves_nothing(tmp_path, backbone, out, given, message):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        run_export(backbone, tmp_path / out, **given)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_fine_tuned_model_takes_the_channels_that_it_was_tuned_for(tmp_path, segmentation):
    with pytest.raises(ValueError, match="was fine-tuned for volumes of 1 channels, not 2"):
        run_export(segmentation, tmp_path / "x", file_format="safetensors", in_channels=2)


def test_damaged_weights_are_one_clear_line(tmp_path):
    run = write_backbone(tmp_path / "run")
    content = bytearray((run / "backbone.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "backbone.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged, or not the file that"):
        run_export(run, tmp_path / "x", file_format="safetensors")
    with pytest.raises(ValueError, match="no checkpoint at"):
        run_export(tmp_path / "gone", tmp_path / "x", file_format="safetensors")


def test_a_missing_extra_says_what_to_install(tmp_path, backbone, monkeypatch):
    monkeypatch.setattr("voxelwave.downstream.export.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'voxelwave\[export\]'"):
        run_export(backbone, tmp_path / "x.onnx", file_format="onnx", in_channels=1)
