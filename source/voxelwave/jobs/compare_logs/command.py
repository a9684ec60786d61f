"""The command `voxelwave compare-logs`."""

from pathlib import Path
from typing import Annotated

import typer


def compare_logs(
    first: Annotated[Path, typer.Argument(help="A run folder or its metrics.jsonl.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    columns: Annotated[
        str | None, typer.Option(help="What to compare, e.g. loss,learning_rate; all but times where not given.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference that counts as equal.")] = 0.0,
) -> None:
    """Tell whether two runs recorded the same numbers, and where they part.

    The exit code is 0, or 1 where a step that both have differs.
    """
    from voxelwave.jobs.compare_logs.run import compare_logs as run

    names = None if columns is None else [name.strip() for name in columns.split(",")]
    if not run(first, second, columns=names, tolerance=tolerance):
        raise typer.Exit(1)
