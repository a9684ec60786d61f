"""What goes with a backbone's weights: how to build it, how to prepare volumes for it, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voxelwave.contracts import Grid
from voxelwave.errors import InputError
from voxelwave.registry import MODALITIES

FORMAT_VERSION = 1


def channel_counts() -> tuple[int, ...]:
    """The channel counts of all registered modalities: the backbone has a patch embedding for each."""
    return tuple(sorted({MODALITIES.get(name).channels for name in MODALITIES.names()}))


def describe_run(config: Mapping[str, Any], *, volumes: Mapping[str, int], step: int, version: str) -> dict[str, Any]:
    """Return the description of the backbone of a pretraining run, from the run's resolved configuration.

    `volumes` are those it saw, by modality, in `step` optimiser steps of voxelwave `version`.
    """
    model, data = config["model"], config["data"]
    backbone = dict(model["backbone"])
    return {
        "format_version": FORMAT_VERSION,
        "voxelwave": version,
        "architecture": {
            "name": backbone.pop("name"),
            "in_channels": list(channel_counts()),
            "settings": backbone,
        },
        "preprocessing": {
            "orientation": "RAS",
            "spacing_mm": data["spacing_mm"],
            "crop_size": data["crop_size"],
            "view_share": data["view_share"],
            "modalities": {
                name: {"channels": MODALITIES.get(name).channels, "range": [0, 1], **settings}
                for name, settings in data["modalities"].items()
            },
        },
        "data": {"volumes": dict(volumes), "steps": step},
        "pretraining": {"target": model["target"], "masking": config["masking"], "loss": config["loss"]},
        "license": config["run"].get("license"),
    }


def modality_settings(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what the constructors of the modalities take, as the description has it."""
    given = description.get("preprocessing", {}).get("modalities", {})
    return {
        name: {key: value for key, value in settings.items() if key not in ("channels", "range")}
        for name, settings in given.items()
    }


def crop_size(description: Mapping[str, Any]) -> Grid | None:
    """Return the sides of a training crop, or None where none are named; raises InputError where they are damaged."""
    crop = description.get("preprocessing", {}).get("crop_size")
    if crop is None:
        return None
    try:
        depth, height, width = (int(side) for side in crop)
    except (TypeError, ValueError):
        raise InputError(f"the description of the model is damaged: its crop_size is {crop}") from None
    return depth, height, width
