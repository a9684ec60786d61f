"""The command `voxelwave embed`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import Depth, Weights, leave


def embed(
    weights: Weights,
    source: Annotated[str, typer.Argument(help="A file, folder, glob, CSV list, list of cases or prepared folder.")],
    out: Annotated[Path, typer.Argument(help="A .parquet, .csv or .npz file, written over.")],
    modality: Annotated[
        str | None, typer.Option(help="Of scans of which no list says another; those are left out.")
    ] = None,
    depth: Depth = None,
) -> None:
    """Write the features of whole scans, a row each, for search, clustering and simple classifiers.

    The exit code is 0, or 1 where files could not be used.
    """
    from voxelwave.jobs.embed.run import embed as run

    leave(run(weights, source, out, modality=modality, depth=depth))
