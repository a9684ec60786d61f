"""The arms of the transfer study: one backbone, pretrained in different ways for the same time, or not at all."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from volumes import NOISE, SIDE

from voxelwave.jobs.common.config_file import apply_override
from voxelwave.jobs.pretrain.config import Config, check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.ops.seeding import torch_generator

BACKBONE = {"name": "waveformer", "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3}
STEPS = 2500  # of "ours"; the others train for as long
BATCH_SIZE = 4
PRECISION = "bf16"  # as fp32 on a development seed, and more steps in the time
ROUNDS, STEPS_A_ROUND = 5, 3
CHANNELS = {"mri": 1, "ct": 3}


@dataclass(frozen=True)
class Arm:
    """A way to pretrain: what differs from "ours", which modalities it sees, and in which folder they lie."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ("mri", "ct")
    volumes: str = "pretrain"


OURS, MAE, FEATURES = "ours", "plain MAE", "features as target"
WITHOUT_INFONCE = "ours without InfoNCE"
MRI_ONLY, CT_ONLY = "MRI only", "CT only"
NOISE_ONLY = "smooth noise"  # a control: what it brings is not anatomy
ARMS = {
    OURS: Arm(),
    WITHOUT_INFONCE: Arm({"loss.contrastive_weight": 0.0}),
    MAE: Arm(
        {
            "masking": {"name": "random", "ratio": 0.75},
            "model.backbone.wavelet_levels": 0,
            "loss.contrastive_weight": 0.0,
        }
    ),
    FEATURES: Arm({"model.target": "features"}),
    MRI_ONLY: Arm(modalities=("mri",)),
    CT_ONLY: Arm(modalities=("ct",)),
    NOISE_ONLY: Arm(modalities=("mri",), volumes=NOISE),
}


def configuration(name: str, arm: Arm, data: Path, out: Path, *, steps: int, seed: int) -> Config:
    """Return the configuration of an arm's run on `<data>/<its volumes>/<modality>`."""
    raw: dict[str, Any] = {
        "run": {"name": re.sub(r"\W+", "_", f"{name} {seed}"), "out_dir": str(out), "seed": seed, "tensorboard": False},
        "data": {
            "crop_size": [SIDE] * 3,
            "foreground_share": 1.0,
            "cached_volumes": 1000,
            # Downstream heads are upright: turned ones would take steps to learn what is never asked.
            "augment": {name: {"flip": {"axes": [0]}, "noise": {}} for name in arm.modalities},
            "num_workers": 0,
            "check_content": False,
            "sources": [
                {"path": str(data / arm.volumes / modality), "modality": modality} for modality in arm.modalities
            ],
        },
        "model": {
            "backbone": dict(BACKBONE),
            "sparse": "gather",
            # Narrow and of one scale: a stronger decoder predicts without help from the backbone.
            "encoder_widths": [48],
            "decoder_width": 48,
        },
        "masking": {"name": "mim", "block_side": 2},
        "loss": {"contrastive_weight": 0.1, "shallow_depth": BACKBONE["depth"] // 2},
        "training": {
            "batch_size": dict.fromkeys(CHANNELS, BATCH_SIZE),
            "learning_rate": 1e-3,
            "precision": PRECISION,
            # An epoch is a handful of steps here: the number of steps alone ends the run.
            "epochs": 100_000,
            "max_steps": steps,
            "probe_every_steps": steps,
            "checkpoint_every_epochs": 100_000,
            "checkpoint_every_steps": 100_000,
        },
    }
    for key, value in arm.overrides.items():
        if isinstance(value, dict):
            raw[key] = value
        else:
            apply_override(raw, f"{key}={value}")
    return check_config(raw)


def equal_time(arms: Mapping[str, Arm], folder: Path) -> dict[str, int]:
    """Measure the arms' steps by turns, and return how many each takes in the time of `STEPS` of ours."""
    # Which volumes an arm sees does not change what a step takes.
    alike = {
        name: next(one for one, of in arms.items() if replace(of, volumes=arm.volumes) == arm)
        for name, arm in arms.items()
    }
    measured = {name: arms[name] for name in alike.values()}
    steps = {
        name: _steps_of(configuration(name, arm, folder, folder, steps=1, seed=0)) for name, arm in measured.items()
    }
    durations: dict[str, list[float]] = {name: [] for name in measured}
    for round_number in range(ROUNDS + 1):
        for name, arm in measured.items():
            began = time.perf_counter()
            for number in range(STEPS_A_ROUND * len(arm.modalities)):
                steps[name](arm.modalities[number % len(arm.modalities)], number)
            if round_number:  # the first warms up
                durations[name].append((time.perf_counter() - began) / (STEPS_A_ROUND * len(arm.modalities)))
    per_step = {name: statistics.median(values) for name, values in durations.items()}
    return {name: round(STEPS * per_step[OURS] / per_step[alike[name]]) for name in arms}


def _steps_of(config: Config) -> Any:
    pretrainer = build_pretrainer(config)
    optimizer = torch.optim.AdamW(pretrainer.parameters())

    def step(modality: str, number: int) -> None:
        volume = torch.rand(BATCH_SIZE, CHANNELS[modality], SIDE, SIDE, SIDE, generator=torch_generator("time", number))
        with torch.autocast("cpu", torch.bfloat16):
            loss = pretrainer(volume, torch_generator("mask", number)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pretrainer.after_step()

    return step


def pretrained(name: str, data: Path, out: Path, *, steps: int, seed: int) -> Path:
    """Pretrain an arm, unless it is done, and return its run folder."""
    config = configuration(name, ARMS[name], data, out, steps=steps, seed=seed)
    if not (config.run_folder() / "figures" / "losses.png").exists():
        pretrain(config, resume=True)
    return config.run_folder()
