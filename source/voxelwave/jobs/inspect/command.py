"""The command `voxelwave inspect`."""

from typing import Annotated

import typer


def inspect(
    path: Annotated[str, typer.Argument(help="A file, a folder, a glob or a CSV list.")],
    modality: Annotated[str | None, typer.Option(help="Take every file as this modality instead of guessing.")] = None,
) -> None:
    """Show what each file holds, and why it could not be used."""
    from voxelwave.jobs.inspect.run import inspect as run

    run(path, modality=modality)
