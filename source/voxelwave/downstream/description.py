"""What goes with a backbone's weights: how to build it, how to prepare volumes for it, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from voxelwave.contracts import Grid
from voxelwave.data.foreground import CroppedAt
from voxelwave.errors import InputError
from voxelwave.registry import MODALITIES, first_problem

FORMAT_VERSION = 1
Count = Annotated[int, Field(ge=0, strict=True)]
Side = Annotated[int, Field(ge=1, le=2**16, strict=True)]
Spacing = Annotated[float, Field(gt=0, lt=1000)]


CROPPED = "cropped_at_mm"  # of preprocessing: at which spacing scans lost the air around them, null where they have it


class _Part(BaseModel):
    """Holds what is read of a description; what else it has is left as it is."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Architecture(_Part):
    name: str
    in_channels: Annotated[list[Annotated[int, Field(ge=1, le=1024, strict=True)]], Field(min_length=1)]
    settings: dict[str, Any]
    depths: list[Count] | None = None


class _Preprocessing(_Part):
    spacing_mm: Spacing | tuple[Spacing, Spacing, Spacing] | None = None
    crop_size: tuple[Side, Side, Side] | None = None
    cropped_at_mm: tuple[Spacing, Spacing, Spacing] | Literal["native"] | None = None
    modalities: dict[str, dict[str, Any]] = {}


class _Data(_Part):
    volumes: dict[str, Count] = {}
    cases: dict[str, Any] = {}


class _Task(_Part):
    name: str
    classes: list[str] = []
    targets: list[str] = []
    width: Annotated[int, Field(ge=1, le=2**16)] | None = None


class _Backbone(_Part):
    path: str | None = None
    data: _Data = _Data()
    license: str | None = None


class _Description(_Part):
    sha256: str | None = None
    architecture: _Architecture
    preprocessing: _Preprocessing = _Preprocessing()
    data: _Data = _Data()
    license: str | None = None
    backbone: _Backbone = _Backbone()
    task: _Task | None = None


def checked(description: Any, path: Path) -> dict[str, Any]:
    """Return what was read of `path`; raises InputError where that is no description of a model."""
    try:
        _Description.model_validate(description)
        return dict(description)
    except ValidationError as error:
        raise InputError(f"{path} is damaged: {first_problem(error)}; take it from its run again") from None


def channel_counts() -> tuple[int, ...]:
    """The channel counts of all registered modalities: the backbone has a patch embedding for each."""
    return tuple(sorted({MODALITIES.get(name).channels for name in MODALITIES.names()}))


def describe_run(
    config: Mapping[str, Any], *, volumes: Mapping[str, int], cropped: CroppedAt | None, step: int, version: str
) -> dict[str, Any]:
    """Return the description of the backbone of a pretraining run, from the run's resolved configuration.

    `volumes` are those it saw, by modality, `cropped` at which spacing, in `step` optimiser steps of voxelwave
    `version`.
    """
    model, data = config["model"], config["data"]
    backbone, pairs = dict(model["backbone"]), data.get("pairs")
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
            "spacing_mm": pairs["spacing_mm"] if pairs else data["spacing_mm"],
            "crop_size": data["crop_size"],
            CROPPED: cropped,
            "view_share": data["view_share"],
            "modalities": {
                name: {"channels": MODALITIES.get(name).channels, "range": [0, 1], **settings}
                for name, settings in data["modalities"].items()
            },
        },
        "data": {"volumes": dict(volumes), "steps": step},
        "pretraining": _pretraining(config),
        "license": config["run"].get("license"),
    }


def _pretraining(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a backbone was trained: of an objective for pairs, without what it takes no part of."""
    loss, shared = config["loss"], {"masking": config["masking"]}
    if (objective := config.get("objective")) is None:
        return {"target": config["model"]["target"], **shared, "loss": loss}
    reconstruction = {"reconstruction": loss["reconstruction"]}
    return {"objective": objective, "pairs": config["data"]["pairs"], **shared, "loss": reconstruction}


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
