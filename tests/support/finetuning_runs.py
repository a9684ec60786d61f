"""Fine-tuning runs of a second, and backbones for them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.splits import k_folds
from voxelwave.downstream.load_backbone import save_backbone
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.finetune.config import FinetuneConfig, check_finetune_config
from voxelwave.jobs.finetune.run import finetune

QUIET = Console(quiet=True)
SETTINGS = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
SEGMENTATION = {
    "name": "segmentation",
    "classes": {"brain": ["6-11"], "bone": [1, 2, 3]},
    "other_labels": "background",
    "width": 4,
    "hausdorff": False,
}
CLASSIFICATION = {"name": "classification", "targets": ["present", "fine"]}
EXACT = ("step", "epoch", "modality", "loss", "learning_rate", "grad_norm")


def export_backbone(folder: Path, **volumes: int) -> Path:
    """Write a backbone that was trained on so many volumes of each modality, at 2 mm."""
    torch.manual_seed(0)
    folder.mkdir()
    modalities = {"mri": {"channels": 1, "range": [0, 1], "percentiles": [1, 99]}}
    described = {
        "architecture": {"name": "waveformer", "in_channels": [1, 3], "settings": SETTINGS},
        "preprocessing": {"spacing_mm": 2.0, "crop_size": [12] * 3, "modalities": modalities},
        "data": {"volumes": volumes or {"mri": 5, "ct": 3}},
        "license": "CC-BY-4.0",
    }
    save_backbone(folder, WaveFormer3D(**SETTINGS).state_dict(), described)
    return folder


def config_of(
    cases: Path, out: Path, name: str, task: dict[str, Any] = SEGMENTATION, **sections: Any
) -> FinetuneConfig:
    """A run of 6 steps with two validations, of volumes of 16³ voxels, from random weights unless told otherwise."""
    raw: dict[str, Any] = {
        "run": {"name": name, "out_dir": str(out), "tensorboard": False, "figures": False},
        "task": task,
        "backbone": {"scratch": SETTINGS},
        "data": {"cases": str(cases), "modality": "mri", "crop_size": [16] * 3, "spacing_mm": 2.0, "folds": 2},
        "training": {"max_steps": 6, "validate_every_steps": 3, "learning_rate": 1e-3, "device": "cpu"},
    }
    for section, values in sections.items():
        raw[section] = {**raw[section], **values}
    return check_finetune_config(raw)


def run(config: FinetuneConfig, **options: Any) -> Path:
    """Run to the end, and return the folder."""
    assert finetune(config, console=QUIET, **options)
    return config.run_folder()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def exact(folder: Path) -> list[dict[str, Any]]:
    """All of the records but what tells of time."""
    kept = [
        {key: value for key, value in record.items() if key in EXACT or "validation" in key}
        for record in records(folder)
    ]
    assert all(set(EXACT) <= set(record) for record in kept)
    return kept


def weights(folder: Path, name: str = "last.pth") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / name)["model"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def list_cases(heads: Path, folder: Path, *, modality: str = "mri", folds: int = 2, test: int = 0) -> Path:
    """Write a list of the heads of a modality, with targets of which every fold has both values; the last are the test.

    `present` alternates within a fold; `fine` is the opposite, and not known of the first case of each fold of three.
    """
    cases = find_cases(heads, modality=modality)
    rest = cases[: len(cases) - test]
    lines = ["image,label,subject,modality,split,present,fine"]
    for subjects in k_folds({case.subject: {case.modality} for case in rest}, folds=folds, seed=0):
        own = [case for case in rest if case.subject in subjects]
        for number, case in enumerate(own):
            fine = "" if number == 0 and len(own) > 2 else 1 - number % 2
            lines.append(f"{case.image},{case.label},{case.subject},{modality},,{number % 2},{fine}")
    lines += [
        f"{case.image},{case.label},{case.subject},{modality},test,{number % 2},1"
        for number, case in enumerate(cases[len(rest) :])
    ]
    path = folder / f"{modality}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
