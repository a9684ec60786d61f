"""Pretraining runs of a second, and what is read from their folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config, check_config

QUIET = Console(quiet=True)
# What is the same in two runs that compute the same; the others are times.
EXACT = (
    "step",
    "epoch",
    "modality",
    "loss",
    "reconstruction",
    "contrastive",
    "easy",
    "hard",
    "learning_rate",
    "grad_norm",
)


def tiny(heads: Path, out_dir: Path) -> dict[str, Any]:
    """The configuration of a run of 2 epochs × 6 steps, alternately on MRI and CT."""
    return {
        "run": {"name": "tiny", "out_dir": str(out_dir), "seed": 0, "tensorboard": False},
        "data": {
            "crop_size": [16, 16, 16],
            "num_workers": 0,
            "sources": [{"path": str(heads / name), "modality": name} for name in ("mri", "ct")],
        },
        "model": {
            "backbone": {"name": "waveformer", "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
            "sparse": "gather",  # what is fastest may differ from one run to the next
            "encoder_widths": [8, 12],
            "decoder_width": 8,
        },
        "training": {"epochs": 2, "learning_rate": 1e-3, "probe_every_steps": 4},
    }


def named(raw: dict[str, Any], name: str, **training: Any) -> Config:
    """Return the checked configuration under another name, with these keys of `training`."""
    return check_config({**raw, "run": {**raw["run"], "name": name}, "training": {**raw["training"], **training}})


def copy_of(config: Config, out_dir: Path) -> Config:
    """Copy the folder of a run, for a test that writes to it."""
    copied = config.model_copy(deep=True)
    copied.run.out_dir = out_dir
    shutil.copytree(config.run_folder(), copied.run_folder())
    return copied


def records(config: Config) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.run_folder() / "metrics.jsonl").read_text().splitlines()]


def exact(config: Config) -> list[tuple[Any, ...]]:
    """What two runs that compute the same have in common to the last bit."""
    return [tuple(record[name] for name in EXACT) for record in records(config)]


def weights(config: Config) -> dict[str, Tensor]:
    return load_checkpoint(config.run_folder() / "last.pth")["model"]
