"""The script that people know: found from anywhere, with a configuration of its own."""

import pytest

from support.command import ROOT, SUBSET_SCRIPT, error_of, process, train_phase0_subset, voxelwave

SUBSET, PRODUCTION = (str(ROOT / "configs" / "pretrain" / name) for name in ("subset.yaml", "production.yaml"))
# The model is built before the data is looked for: a small one is built sooner. With bf16, Fabric has a line to say.
SMALL = (
    *("--set", "training.precision=fp32"),
    *("--set", "model.backbone.depth=2", "--set", "model.backbone.embed_dim=72"),
    *("--set", "model.encoder_widths=[8, 8]", "--set", "model.decoder_width=8"),
)


def train(*arguments, folder):
    return voxelwave(*arguments, folder=folder, program=train_phase0_subset)


def test_help_names_every_option(tmp_path):
    ended = train("--help", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    for option in ("--config", "--set", "--resume"):
        assert option in ended.out


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
    assert message in error_of(train(*arguments, folder=tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_the_default_config_is_found_from_anywhere_and_its_data_in_the_working_folder(tmp_path):
    """In a process of its own, as people call it."""
    line = error_of(process(SUBSET_SCRIPT, folder=tmp_path))
    assert f"mri source 'data/demo/mri' does not exist (working folder: {tmp_path})" in line
