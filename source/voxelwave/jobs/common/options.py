"""Options and arguments that several commands take, and their common end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxelwave.engine.signals import exit_code_when_stopped
from voxelwave.jobs.common.outcome import Outcome

if TYPE_CHECKING:
    from voxelwave.jobs.common.config import JobConfig

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. run.seed=1.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pth; start where there is no run.")]
Weights = Annotated[Path, typer.Argument(help="A run folder, backbone.safetensors or a checkpoint.")]
Depth = Annotated[int | None, typer.Option(help="The block after which features are taken; the last where not given.")]


def train_and_leave(config: JobConfig, train: Callable[[], bool]) -> None:
    """Train a run; end the process with the exit code that `config` has for one that was stopped, if it was."""
    code = config.run.exit_code_when_stopped
    exit_code_when_stopped(code)
    leave(Outcome(train(), when_stopped=code))


def leave(outcome: Outcome) -> None:
    """End the process with the exit code of an outcome; return where that is 0."""
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
