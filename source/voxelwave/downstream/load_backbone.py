"""A pretrained backbone from the files that a run leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from voxelwave.contracts import InputError
from voxelwave.engine.checkpoint import replacing, write_text
from voxelwave.registry import BACKBONES

WEIGHTS, DESCRIPTION = "backbone.safetensors", "backbone.json"


def save_backbone(folder: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write `backbone.safetensors` and, beside it, `backbone.json`: architecture, preprocessing, data, checksum."""
    with replacing(folder / WEIGHTS) as part:
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
        part.write_bytes(content)
    write_text(
        folder / DESCRIPTION,
        json.dumps({**description, "sha256": hashlib.sha256(content).hexdigest()}, indent=2) + "\n",
    )


def load_backbone(path: str | Path) -> nn.Module:
    """Return the backbone of a run folder, or of its `backbone.safetensors`, with every weight loaded.

    Raises InputError where a file is missing or damaged, or a weight is missing, unexpected or of another shape.
    """
    path = Path(path)
    weights_path = path / WEIGHTS if path.is_dir() else path
    description_path = weights_path.with_name(DESCRIPTION)
    for needed in (weights_path, description_path):
        if not needed.is_file():
            raise InputError(f"no {needed.name} in {needed.parent}: give a finished run's folder or its {WEIGHTS}")
    try:
        architecture = json.loads(description_path.read_text(encoding="utf-8"))["architecture"]
        weights = load_file(weights_path)
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
        raise InputError(f"{weights_path} or the {DESCRIPTION} beside it is damaged: {error}") from None
    backbone: nn.Module = BACKBONES.build(
        architecture["name"], tuple(architecture["in_channels"]), **architecture["settings"]
    )
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{weights_path} does not fit its {DESCRIPTION}: {' '.join(str(error).split())}") from None
    return backbone
