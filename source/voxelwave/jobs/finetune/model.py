"""The features that fine-tuning begins with, and what `model.json` says of the model that comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from voxelwave import __version__
from voxelwave.data.foreground import CroppedAt
from voxelwave.downstream.description import CROPPED
from voxelwave.downstream.features import FeaturePyramid, LoadReport
from voxelwave.downstream.load_backbone import NEW_STEM, load_backbone
from voxelwave.errors import InputError
from voxelwave.jobs.finetune.config import BackboneChoice, FinetuneConfig, SegmentationTask
from voxelwave.ops.seeding import key_to_seed
from voxelwave.registry import BACKBONES, MODALITIES


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
            "backbone.train=frozen: set it to full, or take a backbone that was trained on that"
        )
    return features


def describe_model(
    config: FinetuneConfig, features: FeaturePyramid, counts: Mapping[str, int], *, cropped: CroppedAt | None
) -> dict[str, Any]:
    """Return what `model.json` will hold, but the checksum.

    Args:
        config: with all defaults.
        features: as `make_features` returned them; their description says where they come from.
        counts: of the cases of each part.
        cropped: at which spacing scans lose the air around them, in mm.
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
            CROPPED: cropped,
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


def _listed(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts))
