"""The script that people know: found from anywhere, with a configuration of its own."""

import json
from pathlib import Path

import pytest

from support.command import ROOT, SUBSET_SCRIPT, error_of, process, train_phase0_subset, voxelwave
from voxelwave import cli
from voxelwave.jobs.common.config_file import read_config

SUBSET, PRODUCTION = (str(ROOT / "configs" / "pretrain" / name) for name in ("subset.yaml", "production.yaml"))
# The model is built before the data is looked for: a small one is built sooner. With bf16, Fabric has a line to say.
SMALL = (
    *("--set", "training.precision=fp32"),
    *("--set", "model.backbone.depth=2", "--set", "model.backbone.embed_dim=72"),
    *("--set", "model.encoder_widths=[8, 8]", "--set", "model.decoder_width=8"),
)


HEADS = ("--set", "data.sources=[{path: data/demo/mri, modality: mri}, {path: data/demo/ct, modality: ct}]")


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
        ([*HEADS, "--set", "model.backbone.num_heads=3"], "embed_dim 128 is not divisible by num_heads 3"),
        (["--config", "missing.yaml"], "cannot read config missing.yaml: No such file"),
        (["--config", PRODUCTION, "--set", "data.epochs=3"], f"{PRODUCTION}: unknown key 'data.epochs'"),
        (["--config", PRODUCTION, *SMALL], "mri source 'data/processed/openmind/OpenMind_processed/MRI_T1'"),
    ],
    ids=["unknown-key", "bad-value", "no-config", "unknown-key-of-given-config", "no-folder"],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    assert message in error_of(train(*arguments, folder=tmp_path))
    assert not any(tmp_path.iterdir())


def test_the_default_config_is_found_from_anywhere_and_its_data_in_the_working_folder(tmp_path):
    """In a process of its own, as people call it."""
    for name in ("mri", "ct"):
        (tmp_path / "data" / "demo" / name).mkdir(parents=True)
    ended = process(SUBSET_SCRIPT, folder=tmp_path)
    assert "OpenMind_processed and data/processed/NIH_deeplesion/CT are not in place" in ended.out
    assert "mri source 'data/demo/mri': the folder holds no volume" in error_of(ended)


@pytest.fixture
def called(monkeypatch):
    """What the script calls, and with what."""
    calls = []
    monkeypatch.setattr(cli, "synthesize", lambda out, **numbers: calls.append((out, numbers)))
    monkeypatch.setattr(cli, "pretrain", lambda config, overrides, resume: calls.append((overrides, resume)))
    return calls


def test_without_data_heads_are_made_first_and_once(tmp_path, called):
    assert train("--resume", folder=tmp_path).code == 0
    made = (Path("data/demo"), {"num_mri": 50, "num_ct": 50})
    assert called == [made, ([], True)]
    for name in ("mri", "ct"):
        (tmp_path / "data" / "demo" / name).mkdir(parents=True)
    record = tmp_path / "data" / "demo" / "synthesize.json"
    for complete in (False, True):
        called.clear()
        record.write_text(json.dumps({"complete": complete}))
        train(folder=tmp_path)
        assert called == ([] if complete else [made]) + [([], False)]


@pytest.mark.parametrize(
    "given", [["--set", "data.sources=[]"], ["--set", "data={sources: []}"], ["--config", PRODUCTION]]
)
def test_who_names_data_gets_those(tmp_path, called, given):
    train(*given, folder=tmp_path)
    assert called == [([given[1]] if given[0] == "--set" else [], False)]


def test_the_described_tree_is_taken_where_it_is_in_place(tmp_path, called):
    tree = "data/processed/openmind/OpenMind_processed"
    (tmp_path / tree / "MRI_T2").mkdir(parents=True)
    train(folder=tmp_path)
    assert len(called) == 2  # without CT it is not
    called.clear()
    (tmp_path / "data/processed/NIH_deeplesion/CT").mkdir(parents=True)
    ended = train("--set", "training.epochs=1", folder=tmp_path)
    assert f"from {tree}/MRI_T2, data/processed/NIH_deeplesion/CT" in ended.out
    (((sources, epochs), _),) = called
    assert epochs == "training.epochs=1"
    raw = read_config(Path(SUBSET), [sources])
    paths = [(source["path"], source["modality"]) for source in raw["data"]["sources"]]
    assert paths == [(f"{tree}/MRI_T2", "mri"), ("data/processed/NIH_deeplesion/CT", "ct")]
