"""Checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from voxelwave.errors import InputError
from voxelwave.ops.files import replacing

FORMAT_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any], save: Callable[[Any, Any], None] = torch.save) -> None:
    """Write `state`, tensors and plain values, atomically; raises InputError where the disk does not take it."""
    try:
        with replacing(path) as part:
            save({"format_version": FORMAT_VERSION, **state}, part)
    except RuntimeError as error:  # torch's writer has no other word for a full disk
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot write {path}: {reason}; is the disk full? The file before it is unharmed") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed.

    Raises InputError for a missing, damaged or foreign file, and for one of another format version.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch muses about foreign pickles before it refuses them
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # from arbitrary bytes the unpickler raises anything
        # Not in torch's words, which advise to execute what was refused.
        refused = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
        reason = (
            "it holds more than tensors and plain values, and is refused" if refused else "damaged or of another kind"
        )
        raise InputError(f"{path} is not a readable checkpoint ({reason}); take another one of its run") from None
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has checkpoint format {version}, this voxelwave reads format {FORMAT_VERSION}")
    return dict(state)
