"""Options and arguments that several commands take, and their common end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voxelwave.engine.signals import exit_code_when_stopped
from voxelwave.errors import InputError
from voxelwave.jobs.common.outcome import Outcome

if TYPE_CHECKING:
    from voxelwave.jobs.common.config import JobConfig

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. run.seed=1.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pth; start where there is no run.")]
Weights = Annotated[Path, typer.Argument(help="A run folder, backbone.safetensors or a checkpoint.")]
Depth = Annotated[int | None, typer.Option(help="The block after which features are taken; the last where not given.")]


def run_at(out_dir: Path | None) -> dict[str, str]:
    """Return the settings of a run whose folder is `out_dir`, none where that is not given.

    Raises InputError where no run can have that folder.
    """
    if out_dir is None:
        return {}
    # Not above, where it would be imported to show the help.
    from voxelwave.data.listing.discovery import home_expanded
    from voxelwave.jobs.common.config import is_run_name
    from voxelwave.ops.files import absolute

    whole = absolute(home_expanded(str(out_dir)))
    if not is_run_name(whole.name):
        raise InputError(
            f"--out-dir {out_dir}: the folder of a run has letters, digits and _, then also dots, dashes and spaces"
        )
    return {"run.out_dir": str(whole.parent), "run.name": whole.name}


def train_and_leave(config: JobConfig, train: Callable[[], bool]) -> None:
    """Train a run; end the process with the exit code that `config` has for one that was stopped, if it was."""
    code = config.run.exit_code_when_stopped
    exit_code_when_stopped(code)
    leave(Outcome(train(), when_stopped=code))


def leave(outcome: Outcome) -> None:
    """End the process with the exit code of an outcome; return where that is 0."""
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
