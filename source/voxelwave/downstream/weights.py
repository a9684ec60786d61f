"""Weights that leave a run: safetensors, and beside it a JSON that says what they are and holds their checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from voxelwave.downstream.description import checked
from voxelwave.errors import InputError
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.texts import one_line, read_json

OWN_CHECKSUM = "description_sha256"  # of everything else in the description


def save_weights(path: Path, weights: Mapping[str, Tensor], description_path: Path, about: Mapping[str, Any]) -> None:
    """Write `weights` to `path`, and `about` with their checksum to `description_path`."""
    with replacing(path) as part:
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
        part.write_bytes(content)
    described = json.loads(json.dumps({**about, "sha256": hashlib.sha256(content).hexdigest()}))  # as it will be read
    described[OWN_CHECKSUM] = _checksum(described)
    write_text(description_path, json.dumps(described, indent=2) + "\n")


def _checksum(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def read_weights(path: Path, description_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote; raises InputError for files that are missing, damaged, or no pair."""
    for needed in (path, description_path):
        if not needed.is_file():
            raise InputError(
                f"no {needed.name} in {needed.parent}: give a run's folder, its {path.name} or a checkpoint"
            )
    try:
        description = dict(read_json(description_path))
        own = description.pop(OWN_CHECKSUM, None)  # older files have none
    except (ValueError, TypeError) as error:
        raise InputError(f"{description_path} is damaged: {error}; take it from its run again") from None
    if own not in (None, _checksum(description)):
        raise InputError(
            f"{description_path} is damaged, or was edited: take it from its run again, or delete its {OWN_CHECKSUM}"
        )
    description = checked(description, description_path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != description.get("sha256"):
        raise InputError(f"{path} is damaged, or not the file that {description_path} describes")
    try:
        return load(content), description
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file: {one_line(error)}") from None
