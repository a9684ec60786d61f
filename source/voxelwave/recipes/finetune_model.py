"""The model of a downstream task: built of a description, which stands beside its weights and is enough to use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxelwave import __version__
from voxelwave.downstream.classification import ClassificationModel
from voxelwave.downstream.features import FeaturePyramid, LoadReport
from voxelwave.downstream.load_backbone import NEW_STEM, load_backbone
from voxelwave.downstream.segmentation import SegmentationModel
from voxelwave.downstream.weights import read_weights, save_weights
from voxelwave.errors import InputError
from voxelwave.ops.seeding import key_to_seed
from voxelwave.recipes.finetune_config import BackboneChoice, FinetuneConfig, SegmentationTask
from voxelwave.registry import BACKBONES, MODALITIES

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def make_features(choice: BackboneChoice, modalities: Sequence[str], seed: int) -> FeaturePyramid:
    """Load the backbone that a run begins with, or build one with random weights; `report` says what is of which.

    Raises:
        InputError: for a file that is no backbone's, and for modalities that it cannot serve at once.
    """
    counts = sorted({MODALITIES.get(name).channels for name in modalities})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_to_seed(seed, "weights"))
        if choice.path is None:
            settings = choice.scratch.settings
            backbone = BACKBONES.build(choice.scratch.name, tuple(counts), **settings)
            architecture = {"name": choice.scratch.name, "settings": settings}
            report = LoadReport("random weights", missing=list(backbone.state_dict()))
            return FeaturePyramid(backbone, report=report, description={"architecture": architecture})
        # Several modalities need the patch embeddings of all, which only pretraining on all of them has.
        one = counts[0] if len(counts) == 1 else None
        features = load_backbone(choice.path.expanduser(), in_channels=one, stem=choice.stem)
    if untrained := set(counts) - set(features.in_channels):
        raise InputError(
            f"the backbone {choice.path} was trained on volumes of {_listed(features.in_channels)} channels, and the "
            f"cases are {' and '.join(modalities)}, of {_listed(sorted(untrained))} too: choose one with data.modality"
        )
    assert features.report is not None
    if choice.train == "frozen" and NEW_STEM in features.report.adapted.values():
        raise InputError(
            f"the backbone {choice.path} was not trained on {modalities[0]}, and a new stem would stay random with "
            f"backbone.train=frozen: set it to full, or backbone.stem to repeat"
        )
    return features


def add_head_for(features: FeaturePyramid, task: Mapping[str, Any], seed: int) -> nn.Module:
    """Return `features` with a head whose first weights follow from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_to_seed(seed, "head"))
        return add_head(features, task)


def describe_model(config: FinetuneConfig, features: FeaturePyramid, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return what `model.json` will hold, but the checksum.

    Args:
        config: with all defaults.
        features: as `make_features` returned them; their description says where they come from.
        counts: of the cases of each part.
    """
    given, task, data = features.description, config.task, config.data
    if isinstance(task, SegmentationTask):
        head = {"classes": list(task.table.names), "values": task.classes, "width": task.width}
    else:
        head = {"targets": task.targets, "pooling": task.pooling}
    return {
        "format_version": 1,
        "voxelwave": __version__,
        "task": {"name": task.name, **head},
        "architecture": {
            "name": given["architecture"]["name"],
            "in_channels": list(features.in_channels),
            "settings": given["architecture"]["settings"],
            "depths": list(features.depths),
        },
        "preprocessing": {
            "orientation": "RAS",
            "spacing_mm": None if data.spacing_mm == "native" else data.spacing_mm,
            "crop_size": list(data.crop_size),
            "modalities": {
                name: {"channels": MODALITIES.get(name).channels, "range": [0, 1], **settings}
                for name, settings in data.modalities.items()
            },
        },
        "data": {"cases": dict(counts)},
        "backbone": {
            "path": None if config.backbone.path is None else str(config.backbone.path),
            "train": config.backbone.train,
            **{key: given[key] for key in ("sha256", "data", "pretraining", "license") if key in given},
        },
        "license": config.run.license,
    }


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
    except (KeyError, TypeError, AttributeError) as error:
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
        reason = " ".join(str(error).split())
        raise InputError(f"{folder / WEIGHTS} does not fit the model that {DESCRIPTION} describes: {reason}") from None
    return model.eval(), description


def _listed(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts))
