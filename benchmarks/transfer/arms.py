"""The arms of the transfer study: ways to pretrain a backbone on the same heads in the same time."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scans import CONTRASTS, CROP, NOISE, PATCH, PRETRAIN, SPACING_MM

from measuring import ended
from voxelwave.jobs.common.config_file import set_key
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config, check_config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.rendered_pair_data import RenderedPairData
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.ops.seeding import torch_generator

BACKBONE = {"name": "waveformer", "patch_size": PATCH, "embed_dim": 96, "depth": 6, "num_heads": 3}
STEPS = 600  # of cross-contrast; the others train for as long
ROUNDS, STEPS_A_ROUND = 6, 4
QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Arm:
    """A way to pretrain: what differs from the present objective, and where its volumes lie.

    Attributes:
        pairs: trained on pairs that are rendered of the label maps, and not on files.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    modalities: tuple[str, ...] = ("mri", "ct")
    volumes: str = PRETRAIN
    pairs: bool = False


def _cross(**settings: Any) -> dict[str, Any]:
    # Two views that hide 60 % each would share but 16 % of their places.
    mask = {"name": "mim", "block_side": 2, "global_ratio": 0.25}
    return {"objective": {"name": "cross_contrast", **settings}, "masking": mask}


CURRENT, CROSS, SUPERVISED = "present objective", "cross-contrast", "supervised synthesis"
MAE, NOISE_ONLY, CNN = "plain MAE", "smooth noise", "residual CNN, MAE"
# Without wavelets: every token attends every other.
CURRENT_PLAIN, CROSS_PLAIN = "present, plain transformer", "cross-contrast, plain transformer"
SUPERVISED_PLAIN = "supervised synthesis, plain transformer"
ENCODER = " with its encoder"  # the name of an arm whose SparK encoder is measured along with the backbone
PLAIN = {"model.backbone.wavelet_levels": 0}
NO_CONTRAST = {"loss.contrastive_weight": 0.0, "loss.shallow_depth": 0}
SIMPLE_MAE = {"masking": {"name": "random", "ratio": 0.6}, **NO_CONTRAST}
ARMS = {
    CURRENT: Arm(),
    CROSS: Arm(_cross(), pairs=True),
    CROSS_PLAIN: Arm({**_cross(), **PLAIN}, pairs=True),
    SUPERVISED: Arm({"objective": {"name": "supervised_synthesis"}}, pairs=True),
    SUPERVISED_PLAIN: Arm({"objective": {"name": "supervised_synthesis"}, **PLAIN}, pairs=True),
    MAE: Arm({**SIMPLE_MAE, **PLAIN}),
    NOISE_ONLY: Arm(modalities=("mri",), volumes=NOISE),
    CNN: Arm(
        {**SIMPLE_MAE, "model.backbone": {"name": "residual_cnn", "patch_size": PATCH, "embed_dim": 64, "depth": 3}}
    ),
}
# What one setting is worth; of fewer seeds.
ABLATIONS = {
    "present, intensities as target": Arm({"loss.reconstruction": {"intensities": True}}),
    CURRENT_PLAIN: Arm(PLAIN),
    "present, without InfoNCE": Arm(NO_CONTRAST),
    "present, plain transformer, without InfoNCE": Arm({**PLAIN, **NO_CONTRAST}),
    "present, three-scale decoder": Arm({"model.encoder_widths": [48, 64, 96]}),
    # The same views and masks: what is left is what the views are worth by themselves.
    "cross-contrast, without the contrast": Arm(_cross(contrastive_weight=0.0), pairs=True),
    "cross-contrast, predicts the other view": Arm(_cross(cross_reconstruction_weight=0.5), pairs=True),
}


def configuration(name: str, arm: Arm, data: Path, out: Path, *, steps: int, seed: int) -> Config:
    """Return the configuration of an arm's run."""
    raw: dict[str, Any] = {
        "run": {"name": re.sub(r"\W+", "_", f"{name} {seed}"), "out_dir": str(out), "seed": seed, "tensorboard": False},
        "data": {"crop_size": [CROP] * 3, "cached_volumes": 1000, "num_workers": 0},
        "model": {
            "backbone": dict(BACKBONE),
            "sparse": "gather",
            # Narrow and of one scale: a stronger decoder predicts without help from the backbone.
            "encoder_widths": [48],
            "decoder_width": 48,
        },
        "masking": {"name": "mim", "block_side": 2},
        "training": {
            "batch_size": {"mri": 4, "ct": 4},
            "learning_rate": 1e-3,
            # An epoch is a handful of steps here: the number of steps alone ends the run.
            "epochs": 100_000,
            "max_steps": steps,
            "probe_every_steps": steps,
            "checkpoint_every_epochs": 100_000,
            "checkpoint_every_steps": 100_000,
        },
    }
    if arm.pairs:
        cases = str(data / arm.volumes / "cases.csv")
        raw["data"]["pairs"] = {"cases": cases, "contrasts": [*CONTRASTS, "random"], "spacing_mm": SPACING_MM}
    else:
        raw["data"]["check_content"] = False
        raw["data"]["augment"] = {modality: {"flip": {"axes": [0]}, "noise": {}} for modality in arm.modalities}
        raw["data"]["sources"] = [
            {"path": str(data / arm.volumes / modality), "modality": modality} for modality in arm.modalities
        ]
        raw["loss"] = {"contrastive_weight": 0.1, "shallow_depth": 3}
    for key, value in arm.overrides.items():
        set_key(raw, key, value)
    return check_config(raw)


def equal_time(data: Path, record: Path) -> dict[str, int]:
    """Return how many steps each arm takes in the time of `STEPS` of cross-contrast; measured by turns, on idle cores.

    Where an arm is new all are timed, what is known stays, and what it would be now is printed.
    """
    known: dict[str, int] = json.loads(record.read_text()) if record.exists() else {}
    every = ARMS | ABLATIONS
    if not every.keys() - known.keys():
        return known
    steps = {name: _steps_of(configuration(name, arm, data, data, steps=1, seed=0)) for name, arm in every.items()}
    durations: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(STEPS_A_ROUND):
                step()
            if number:  # the first warms up
                durations[name].append((time.perf_counter() - began) / STEPS_A_ROUND)
    per_step = {name: statistics.median(values) for name, values in durations.items()}
    timed = {name: round(STEPS * per_step[CROSS] / one) for name, one in per_step.items()}
    for name, number in known.items():
        print(f"{name}: {number} steps, timed now {timed.get(name)}", flush=True)
    found = timed | known
    record.write_text(json.dumps(found, indent=2) + "\n")
    return found


def _steps_of(config: Config) -> Callable[[], None]:
    """Return what trains one step, with all that the step waits for."""
    pretrainer = build_pretrainer(config)
    optimizer = torch.optim.AdamW(pretrainer.parameters())
    kind = TrainingData if config.data.pairs is None else RenderedPairData
    data = kind(config, rank=0, world_size=1, pin_memory=False, console=QUIET)
    stream = enumerate(data.batches(0, ROUNDS * STEPS_A_ROUND))

    def step() -> None:
        index, batch = next(stream)
        views = data.augmented(batch, index, torch.device("cpu"))  # type: ignore[arg-type]
        pretrainer(views, torch_generator("mask", index)).loss.backward()  # type: ignore[arg-type]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pretrainer.after_step()

    return step


def pretrained(name: str, data: Path, out: Path, *, steps: int, seed: int) -> Path:
    """Pretrain an arm, unless it is done, and return its run folder."""
    config = configuration(name, (ARMS | ABLATIONS)[name], data, out, steps=steps, seed=seed)
    if not (config.run_folder() / "figures" / "losses.png").exists():
        ended(pretrain(config, resume=True, console=QUIET))
    return config.run_folder()
