import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUBSET, PRODUCTION = (str(ROOT / "configs" / "pretrain" / name) for name in ("subset.yaml", "production.yaml"))
# The model is built before the data is looked for: a small one is built sooner. With bf16, Fabric has a line to say.
SMALL = (
    *("--set", "training.precision=fp32"),
    *("--set", "model.backbone.depth=2", "--set", "model.backbone.embed_dim=72"),
    *("--set", "model.encoder_widths=[8, 8]", "--set", "model.decoder_width=8"),
)


def train(*arguments, cwd):
    command = [sys.executable, str(ROOT / "source" / "train_phase0_subset.py"), *arguments]
    environment = {**os.environ, "COLUMNS": "400"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def test_help_names_every_option(tmp_path):
    result = train("--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for option in ("--config", "--set", "--resume"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.epoch=3"], f"{SUBSET}: unknown key 'training.epoch'; known here: epochs"),
        (["--set", "model.backbone.num_heads=3"], "embed_dim 128 is not divisible by num_heads 3"),
        (["--config", "missing.yaml"], "cannot read config missing.yaml: No such file"),
        (["--config", PRODUCTION, "--set", "data.epochs=3"], f"{PRODUCTION}: unknown key 'data.epochs'"),
        (["--config", PRODUCTION, *SMALL], "mri source 'data/processed/openmind/OpenMind_processed/MRI_T1'"),
    ],
    ids=["unknown-key", "bad-value", "no-config", "unknown-key-of-given-config", "no-folder"],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    result = train(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("voxelwave: ")
    assert message in lines[0]
    assert not (tmp_path / "checkpoints").exists()


def test_the_default_config_is_found_from_anywhere_and_its_data_in_the_working_folder(tmp_path):
    result = train(cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"mri source 'data/demo/mri' does not exist (working folder: {tmp_path})" in result.stderr
