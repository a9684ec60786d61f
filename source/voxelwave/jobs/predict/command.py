"""The command `voxelwave predict`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import leave


def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished fine-tuning run.")],
    images: Annotated[str, typer.Argument(help="A file, a folder, a glob, a CSV list or a prepared data set.")],
    out: Annotated[
        Path, typer.Argument(help="Folder for label maps; a .csv for the probabilities of a classification.")
    ],
    modality: Annotated[
        str | None, typer.Option(help="Of images of which no list says another; those are left out.")
    ] = None,
    overlap: Annotated[float, typer.Option(help="Of windows, as a share of their side.")] = 0.5,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.")] = 2,
) -> None:
    """Segment or classify images with a fine-tuned model; called again, it goes on.

    The exit code is 0, or 1 where files could not be used (each with its reason), or 130 where it was stopped.
    """
    from voxelwave.jobs.predict.run import predict as run_prediction

    leave(run_prediction(run, images, out, modality=modality, overlap=overlap, batch_size=batch_size))
