"""The folder of a run: never overwritten, and continued with the settings that it was begun with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from voxelwave.engine.checkpoint import LAST, PREVIOUS, load_checkpoint
from voxelwave.engine.run_log import METRICS, read_metrics, recorded
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import Section
from voxelwave.ops.files import MARK_DIGITS, locked, write_text
from voxelwave.ops.loggers import logger
from voxelwave.ops.texts import sealed

Checkpoint = Mapping[str, Any]
# By group and name of a file, a mark of `ops.files.content_mark`.
Contents = Mapping[str, Mapping[str, str]]
CONFIG = "config.yaml"


class Generation(NamedTuple):
    """What a run goes on from, and the file that holds it."""

    checkpoint: Checkpoint
    path: Path


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder of a run and keep other processes out of it; where nothing was written it is gone again.

    Raises InputError where another process trains the run, and where the disk does not take a file of it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            yield
    except OSError as error:
        if error.filename is None or not Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {error.filename}: {reason}; mend that, and go on with --resume") from None
    finally:
        with suppress(OSError):  # as of a folder that is not empty
            for place in made:
                place.rmdir()


def open_run(folder: Path, *, resume: bool) -> Generation | None:
    """Return the newest whole generation to go on from, or None at the start; one that is passed over is logged.

    Raises InputError where a run is there and was not to be resumed, and where nothing of it can be gone on from.
    """
    there = [folder / name for name in (LAST, PREVIOUS) if os.path.lexists(folder / name)]
    if not resume:
        if there or any((folder / name).exists() for name in (METRICS, CONFIG)):
            raise InputError(f"{folder} holds a run already: go on with --resume, or choose another run.name")
        return None
    reasons: list[InputError] = []
    for path in there:
        try:
            checkpoint = load_checkpoint(path)
            recorded(folder / METRICS, int(checkpoint.get("step", 0)), checkpoint.get("metrics_crc32"))
        except InputError as error:
            reasons.append(error)
            continue
        if path.name != LAST:
            reason = reasons[0] if reasons else f"{folder / LAST} is missing"
            logger.warning("warning: %s; going on from %s, step %d", reason, path, checkpoint.get("step", 0))
        return Generation(checkpoint, path)
    if reasons:
        raise reasons[0]
    left = [path.name for path in sorted(folder.glob("*.pth"))]
    if read_metrics(folder / METRICS):
        left.append(METRICS)
    if left:
        raise InputError(
            f"cannot resume {folder}: it holds {left[0]}, and neither {LAST} nor {PREVIOUS}; restore one of them, "
            f"or choose another run.name"
        )
    return None


def check_settings_stay(
    folder: Path, checkpoint: Checkpoint, config: Mapping[str, Any], free_to_change: Mapping[str, Sequence[str]]
) -> None:
    """Raise InputError where a run is to go on with another setting, which is named.

    A setting that the run's version did not know may be there as long as it is off: false, 0, empty.

    Args:
        config: resolved, as plain values.
        free_to_change: keys by section that may differ between a run and its continuation.
    """
    before, now = flat_settings(checkpoint["config"]), flat_settings(config)
    free = {f"{section}.{key}" for section, keys in free_to_change.items() for key in keys}
    for key in sorted((before.keys() | now.keys()) - free):
        if key not in before and not now[key]:
            continue  # what is off now was unknown to the version that began the run
        if before.get(key) != now.get(key):
            raise InputError(
                f"cannot resume {folder}: '{key}' was {before.get(key)} and is {now.get(key)} now; "
                f"restore it, or start another run.name"
            )
    earlier, later = (_augmentations(of) for of in (checkpoint["config"], config))
    for modality in earlier.keys() & later.keys():
        if earlier[modality] != later[modality]:
            raise InputError(
                f"cannot resume {folder}: 'data.augment.{modality}' was {', '.join(earlier[modality])} and is "
                f"{', '.join(later[modality])} now; restore it, also its order, or start another run.name"
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
    write_text(folder / CONFIG, sealed(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)))


def _augmentations(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return by modality the names of what is done to its batches, in this order, also of what has no settings."""
    augment = config.get("data", {}).get("augment", {})
    return {modality: list(steps) for modality, steps in augment.items() if isinstance(steps, Mapping)}


def flat_settings(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested sections as `a.b.c` keys."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    return {
        key: value
        for name, child in values.items()
        for key, value in flat_settings(child, f"{prefix}.{name}" if prefix else name).items()
    }
