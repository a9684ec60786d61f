"""A pretrained backbone from the files that a run leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from voxelwave.errors import InputError
from voxelwave.ops.files import replacing, write_text
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
        description = json.loads(description_path.read_text(encoding="utf-8"))
        architecture = description["architecture"]
        name, in_channels, settings = (architecture[key] for key in ("name", "in_channels", "settings"))
        checksum = description["sha256"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{description_path} is damaged: {error!r}; take it from its run again") from None
    content = weights_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != checksum:
        raise InputError(f"{weights_path} is damaged, or not the file that {description_path} describes")
    backbone: nn.Module = BACKBONES.build(name, tuple(in_channels), **settings)
    try:
        backbone.load_state_dict(load(content))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"{weights_path} does not fit its {DESCRIPTION}: {' '.join(str(error).split())}") from None
    return backbone
