"""The folder of a run: never overwritten, and continued with the settings that it was begun with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.engine.loop import Trainer
from voxelwave.engine.run_log import RunLog
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import RunConfig, Section
from voxelwave.jobs.common.console import Console
from voxelwave.ops.files import write_text


def open_run(folder: Path, *, resume: bool) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, or None at the start.

    Raises:
        InputError: where a run is there and was not to be resumed.
    """
    last = folder / "last.pth"
    if not resume and any((folder / name).exists() for name in ("last.pth", "metrics.jsonl", "config.yaml")):
        raise InputError(f"{folder} holds a run already: go on with --resume, or choose another run.name")
    return load_checkpoint(last) if last.exists() else None


def check_settings_stay(
    folder: Path,
    checkpoint: dict[str, Any] | None,
    config: dict[str, Any],
    free_to_change: Mapping[str, Sequence[str]],
) -> None:
    """Raise InputError where a run is to go on with another setting, which is named.

    Args:
        config: resolved, as plain values.
        free_to_change: keys by section that may differ between a run and its continuation.
    """
    if checkpoint is None:
        return
    before, now = _flat(checkpoint["config"]), _flat(config)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    free = {f"{section}.{key}" for section, keys in free_to_change.items() for key in keys}
    if refused := [key for key in changed if key not in free]:
        key = refused[0]
        raise InputError(
            f"cannot resume {folder}: '{key}' was {before.get(key)} and is {now.get(key)} now; "
            f"restore it, or start another run.name"
        )


def write_config(folder: Path, config: Section) -> None:
    """Make the folder and write the configuration into it, with every default."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def begin(
    trainer: Trainer,
    checkpoint: dict[str, Any] | None,
    folder: Path,
    config: Section,
    run: RunConfig,
    console: Console,
    *,
    writes: bool = True,
) -> RunLog:
    """Go on from the checkpoint, where there is one, and return the log of the steps to come.

    Args:
        run: the part of `config` that says what is logged.
        writes: whether this process is the one that writes.
    """
    total_steps = trainer.settings.total_steps
    if checkpoint is not None:
        trainer.restore(checkpoint)
        console.say(f"resuming {folder} at step {trainer.state.step} of {total_steps}")
    if writes:
        write_config(folder, config)
    return RunLog(
        folder,
        start_step=trainer.state.step,
        total_steps=total_steps,
        console=console,
        tensorboard=run.tensorboard,
        writes=writes,
    )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as `a.b.c` keys."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        key: value
        for name, child in values.items()
        for key, value in _flat(child, f"{prefix}.{name}" if prefix else name).items()
    }
