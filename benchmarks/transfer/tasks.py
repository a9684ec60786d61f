"""What the arms are measured by: fine-tuning on few labelled volumes, and probes of frozen features."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from arms import BACKBONE, PRECISION
from volumes import REGIONS, SIDE, Task

from voxelwave.jobs.common.console import Console
from voxelwave.jobs.finetune.config import check_finetune_config
from voxelwave.jobs.finetune.run import finetune
from voxelwave.jobs.probe.run import probe

SCRATCH = "scratch"
STEPS = 800  # of fine-tuning
# With the attention of the plain MAE a step takes half as long again: what ours makes of that time.
TIME_OF_MAE = 1200
MORE_STEPS = 3200  # what is left of a head start
RANDOM, RAW = "random init", "raw voxels"
# Found on the heads of a development seed, one after the other and not together: the rate at which scratch does best
# with its backbone at the full rate, and then the share of it for the backbone. At both, pretrained weights do better,
# too, than at the others that were tried.
BATCH_SIZE, LEARNING_RATE, WIDTH = 2, 1e-2, 8
LR_SCALE, FULL_RATE = 0.1, 1.0
_READ: dict[Any, Any] = {}  # cases that this process has read


def finetuned(
    task: Task, checkpoint: Path | None, *, labels: int, seed: int, steps: int, lr_scale: float, folder: Path
) -> dict[str, Any]:
    """Fine-tune on `labels` volumes and return the mean Dice over classes and test cases, and that of each class."""
    raw = {
        "run": {
            "name": f"cell_{os.getpid()}",
            "out_dir": str(folder),
            "seed": seed,
            "tensorboard": False,
            "figures": False,
        },
        "task": {
            "name": "segmentation",
            "classes": {name: [_plain(value) for value in values] for name, values in task.classes.items()},
            "other_labels": "background",
            "width": WIDTH,
            "hausdorff": False,
        },
        "backbone": {
            "path": None if checkpoint is None else str(checkpoint),
            "lr_scale": lr_scale,
            "scratch": BACKBONE,
        },
        "data": {
            "cases": str(task.cases),
            "modality": task.modality,
            "crop_size": [SIDE] * 3,
            "spacing_mm": "native",
            "folds": 1,
            "num_train_subjects": labels,
            "augment": {task.modality: {"flip": {"axes": [0]}, "affine": {}, "gamma": {}, "noise": {}}},
        },
        "training": {
            "max_steps": steps,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "precision": PRECISION,
        },
    }
    if task.modality == "ct":
        raw["data"]["augment"]["ct"].pop("gamma")
    config = check_finetune_config(raw)
    shutil.rmtree(config.run_folder(), ignore_errors=True)
    finetune(config, console=Console(quiet=True), kept=_READ)
    tested = json.loads((config.run_folder() / "results.json").read_text())["test"]
    shutil.rmtree(config.run_folder())
    return {"score": tested["mean_dice"], "by_class": tested["dice"]}


def probed(checkpoint: Path, cases: Path, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Probe frozen features, beside those of the same backbone with random weights and raw voxels."""
    regions = ",".join(f"{name}={'+'.join(str(int(value)) for value in values)}" for name, values in REGIONS.items())
    results = probe(
        checkpoint,
        cases,
        label_classes=regions,
        out=folder / f"probe_{os.getpid()}.json",
        seed=seed,
        console=Console(quiet=True),
    )
    return [
        {
            "task": f"{result.task} ({result.modality})",
            "probe": f"{result.probe}: {result.measure}",
            "pretrained": result.pretrained.value,
            RANDOM: result.untrained.value,
            RAW: result.raw.value,
            "chance": result.pretrained.chance,
        }
        for result in results
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else int(value)
