"""The command `voxelwave doctor`."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders that a run would write to.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="What has to be there: minkowski or cuda; may be repeated.")
    ] = None,
) -> None:
    """Show what is installed, what is missing and what to do, and train one step on each device.

    The exit code is 0 where voxelwave can train, 1 where something needed does not work.
    """
    from voxelwave.jobs.doctor.run import doctor as run

    if run(folders or [], require=require or []):
        raise typer.Exit(1)
