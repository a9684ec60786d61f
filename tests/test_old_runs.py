"""Runs, checkpoints and bundles that voxelwave wrote before its jobs had folders of their own go on working.

`support/runs_of_0_1_0.zip` holds tiny ones, what they computed then, and `make.py`, which made them at commit 77d6b48.
"""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.engine.run_log import read_metrics
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.finetune.config import load_finetune_config
from voxelwave.jobs.finetune.run import finetune
from voxelwave.jobs.phantom.config import load_phantom_config
from voxelwave.jobs.phantom.train import load_phantom_model, train_phantoms
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.jobs.pretrain.run import pretrain

ARCHIVE = Path(__file__).parent / "support" / "runs_of_0_1_0.zip"
QUIET = Console(quiet=True)
VOLUME = torch.linspace(0, 1, 16**3).view(1, 1, 16, 16, 16)
# What the machine decides, and not the run.
TIMED = ("volumes_per_second", "phantoms_per_second", "data_wait_s")
# Which hidden tokens were hard was drawn at random then; the loss weighs all of them alike.
REDRAWN = ("easy", "hard")


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """What was computed then; the working folder is that of the runs, whose configurations have relative paths."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("expected.json").read_text())


@pytest.mark.parametrize(
    ("job", "load", "run"),
    [
        ("pretrain", load_config, pretrain),
        ("finetune", load_finetune_config, finetune),
        ("phantom", load_phantom_config, train_phantoms),
    ],
)
def test_an_interrupted_run_goes_on_to_the_numbers_that_the_whole_one_had(expected, job, load, run):
    before = len(read_metrics(Path(f"{job}_stopped", "metrics.jsonl")))
    assert run(load(f"{job}_stopped/config.yaml"), resume=True, console=QUIET)
    records = read_metrics(Path(f"{job}_stopped", "metrics.jsonl"))
    assert before < len(records) == len(expected[job])
    for record, then in zip(records, expected[job], strict=True):
        assert record.pop("modality") == then.pop("modality")
        kept, had = ({name: of[name] for name in of if name not in (*TIMED, *REDRAWN)} for of in (record, then))
        assert kept == pytest.approx(had, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("weights", ["pretrain", "pretrain/backbone.safetensors", "pretrain/best_model.pth"])
def test_a_backbone_has_the_features_that_it_had(expected, weights):
    with torch.no_grad():
        features = load_backbone(weights).eval()(VOLUME)[-1].mean((2, 3, 4))[0]
    if weights.endswith(".pth"):  # of the best epoch, and not of the last
        assert features.isfinite().all()
    else:
        assert features.tolist() == pytest.approx(expected["features"], rel=1e-4, abs=1e-5)


def test_a_finetuned_model_has_the_logits_that_it_had(expected):
    model, _ = load_finetuned("finetune")
    with torch.no_grad():
        assert model(VOLUME).mean((2, 3, 4))[0].tolist() == pytest.approx(expected["logits"], rel=1e-4, abs=1e-5)


def test_a_phantom_embedding_has_the_vectors_that_it_had(expected):
    model, _ = load_phantom_model(Path("phantom"))
    with torch.no_grad():
        vectors = model(torch.linspace(-1, 1, 512).view(1, 2, 16, 16))[0]
    assert vectors.tolist() == pytest.approx(expected["embedding"], rel=1e-4, abs=1e-5)


def test_an_exported_bundle_runs(expected):
    del expected
    Path("images").mkdir()
    Path("scans/0_mri.nii").rename("images/0_mri.nii")
    arguments = ["--config_file", "bundle/configs/inference.json", "--bundle_root", "bundle"]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *arguments]
    done = subprocess.run(
        [*command, "--dataset_dir", "images", "--output_dir", "out"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert Path("out/0_mri_seg.nii.gz").stat().st_size > 0
