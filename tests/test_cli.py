import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = str(Path(__file__).parents[1] / "configs" / "pretrain" / "demo.yaml")


def voxelwave(*arguments, cwd=None):
    environment = {**os.environ, "COLUMNS": "400"}
    command = [sys.executable, "-m", "voxelwave", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def source(path):
    return f"data.sources=[{{path: {path}, modality: mri}}]"


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "scan.nii").write_bytes(b"this is no volume")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "missing.yaml"], "cannot read config missing.yaml: No such file"),
        (["pretrain", CONFIG, "--set", "training.epoch=3"], "unknown key 'training.epoch'; known here: epochs"),
        (["pretrain", CONFIG, "--set", "training.epochs=many"], "key 'training.epochs'"),
        (["pretrain", CONFIG, "--set", source("nowhere")], "mri source 'nowhere' does not exist"),
        (["pretrain", CONFIG, "--set", source("empty")], "mri source 'empty'"),
        (["pretrain", CONFIG, "--set", source("broken")], "scan.nii"),
        (["pretrain", CONFIG, "--set", "data.crop_size=[50, 48, 48]"], "not divisible by model.backbone.patch_size 4"),
        (["pretrain", CONFIG, "--set", "model.backbone.num_heads=5"], "embed_dim 96 is not divisible by num_heads 5"),
        (["pretrain", CONFIG, "--set", "training.device=cuda:99"], "training.device=cuda:99"),
        (["pretrain", CONFIG, "--set", "loss.shallow_depth=9"], "shallow_depth must lie in 0…3"),
        (["synthesize", "out", "--num-mri", "0", "--num-ct", "0"], "ask for 1 or more"),
        (["finetune", "missing.yaml"], "cannot read config missing.yaml: No such file"),
        (["inspect", "nowhere"], "nowhere"),
        (["export", "empty", "out", "--format", "torchscript"], "unknown format 'torchscript'; known: safetensors"),
        (["export", "empty", "out", "--format", "bundle"], "no backbone in empty"),
        (["predict", "empty", "broken", "out"], "no model.safetensors in empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_one_line_and_exit_code_2(folders, arguments, message):
    result = voxelwave(*arguments, cwd=folders)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("voxelwave: ")
    assert message in lines[0]
    assert not (folders / "checkpoints").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune", "synthesize", "inspect", "export", "predict"])
def test_every_command_explains_itself(command):
    result = voxelwave(command, "--help")
    assert result.returncode == 0
    assert "Usage" in result.stdout


def test_nothing_heavy_is_imported_before_a_command_runs():
    heavy = {"torch", "numpy", "monai", "nibabel", "matplotlib"}
    code = f"import sys, voxelwave.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
