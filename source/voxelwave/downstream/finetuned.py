"""A fine-tuned model: built of a description, which stands beside its weights and is enough to use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxelwave.downstream.classification import ClassificationModel
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.segmentation import SegmentationModel
from voxelwave.downstream.weights import read_weights, save_weights
from voxelwave.errors import InputError
from voxelwave.ops.seeding import key_to_seed
from voxelwave.ops.texts import one_line
from voxelwave.registry import BACKBONES

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def add_head_for(features: FeaturePyramid, task: Mapping[str, Any], seed: int) -> nn.Module:
    """Return `features` with a head whose first weights follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_to_seed(seed, "head"))
        return add_head(features, task)


def build_model(description: Mapping[str, Any]) -> nn.Module:
    """Build the model that `description`, the content of a `model.json`, tells of, with random weights.

    Its `task` is `{"name": "segmentation", "classes": ["background", …], "width": …}`, where the place of a class is
    its value in a prediction, or `{"name": "classification", "targets": […], "pooling": …}`. `architecture` and
    `preprocessing` are as in `backbone.json`.

    Raises:
        InputError: for a description that is damaged or of a task that is not known.
    """
    try:
        architecture = description["architecture"]
        backbone = BACKBONES.build(
            architecture["name"], tuple(architecture["in_channels"]), **dict(architecture["settings"])
        )
        features = FeaturePyramid(backbone, depths=architecture["depths"], description=description)
        return add_head(features, description["task"])
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"the description of the model is damaged: {error!r}; take it from its run again") from None


def add_head(features: FeaturePyramid, task: Mapping[str, Any]) -> nn.Module:
    """Return `features` with the head of `task`, as `build_model` describes it."""
    if task["name"] == "segmentation":
        return SegmentationModel(features, num_classes=len(task["classes"]), width=task["width"])
    if task["name"] == "classification":
        return ClassificationModel(features, num_targets=len(task["targets"]), pooling=task["pooling"])
    raise InputError(f"unknown task '{task['name']}'; known: classification, segmentation")


def save_finetuned(folder: Path, model: nn.Module, description: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `model.json`."""
    save_weights(folder / WEIGHTS, model.state_dict(), folder / DESCRIPTION, description)


def load_finetuned(run_folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of a finished run of `voxelwave finetune`, in eval mode, and its description.

    Raises:
        InputError: for a folder without a model, and for files that are damaged or do not belong together.
    """
    folder = Path(run_folder).expanduser()
    if not (folder / WEIGHTS).is_file():
        folds = sorted(path.parent.name for path in folder.glob(f"fold_*/{WEIGHTS}"))
        way_out = (
            f"one of its folds, such as {folder / folds[0]}" if folds else "a finished run of `voxelwave finetune`"
        )
        raise InputError(f"no {WEIGHTS} in {folder}: give {way_out}")
    weights, description = read_weights(folder / WEIGHTS, folder / DESCRIPTION)
    model = build_model(description)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{folder / WEIGHTS} does not fit the model that {DESCRIPTION} describes: {one_line(error)}"
        ) from None
    return model.eval(), description
