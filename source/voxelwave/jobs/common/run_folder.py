"""The folder of a run: never overwritten, and continued with the settings that it was begun with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import Section
from voxelwave.ops.files import MARK_DIGITS, write_text

Checkpoint = Mapping[str, Any]
# By group and name of a file, a mark of `ops.files.content_mark`.
Contents = Mapping[str, Mapping[str, str]]


def open_run(folder: Path, *, resume: bool) -> Checkpoint | None:
    """Return the checkpoint to go on from, or None at the start.

    Raises InputError where a run is there and was not to be resumed.
    """
    last = folder / "last.pth"
    if not resume and any((folder / name).exists() for name in ("last.pth", "metrics.jsonl", "config.yaml")):
        raise InputError(f"{folder} holds a run already: go on with --resume, or choose another run.name")
    return load_checkpoint(last) if last.exists() else None


def check_settings_stay(
    folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any], free_to_change: Mapping[str, Sequence[str]]
) -> None:
    """Raise InputError where a run is to go on with another setting, which is named.

    Args:
        config: resolved, as plain values.
        free_to_change: keys by section that may differ between a run and its continuation.
    """
    before, now = _flat(checkpoint["config"]), _flat(config)
    free = {f"{section}.{key}" for section, keys in free_to_change.items() for key in keys}
    for key in sorted((before.keys() | now.keys()) - free):
        if before.get(key) != now.get(key):
            raise InputError(
                f"cannot resume {folder}: '{key}' was {before.get(key)} and is {now.get(key)} now; "
                f"restore it, or start another run.name"
            )


def check_files_stay(folder: Path, checkpoint: Checkpoint, files: Mapping[str, str], what: str) -> None:
    """Raise InputError where a run is to go on with other files: the order of all of them would be another.

    Args:
        files: the number and a checksum of the names of each group of files.
        what: they are called in the message.
    """
    if checkpoint.get("files") != files:
        raise InputError(
            f"cannot resume {folder}: its {what} were {checkpoint.get('files')} and are {files} now (number and "
            f"checksum of the names); restore them, or start another run.name"
        )


def marks_of(contents: Contents) -> dict[str, str]:
    """Return what a checkpoint keeps of `contents`: the marks of each group behind one another."""
    return {group: "".join(marks.values()) for group, marks in contents.items()}


def check_contents_stay(folder: Path, checkpoint: Checkpoint, contents: Contents) -> None:
    """Raise InputError where a run is to go on with a file that holds something else than before, which is named."""
    for group, before in checkpoint.get("contents", {}).items():
        for number, (name, mark) in enumerate(contents[group].items()):
            if not before.startswith(mark, number * MARK_DIGITS):
                raise InputError(
                    f"cannot resume {folder}: {name} has changed since the run was begun (size, checksum or target); "
                    f"restore it, or start another run.name"
                )


def write_config(folder: Path, config: Section) -> None:
    """Make the folder and write the configuration into it, with every default."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as `a.b.c` keys."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        key: value
        for name, child in values.items()
        for key, value in _flat(child, f"{prefix}.{name}" if prefix else name).items()
    }
