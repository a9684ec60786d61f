"""The command `voxelwave synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import leave


def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write mri/, ct/ and labels/ into.")],
    num_mri: Annotated[int, typer.Option(help="Number of MRI heads.")] = 8,
    num_ct: Annotated[int, typer.Option(help="Number of CT heads.")] = 8,
    size: Annotated[int, typer.Option(help="Voxels along each side.")] = 96,
    seed: Annotated[int, typer.Option(help="What all random shapes and contrasts follow from.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; as many as are worth their start where not given.")
    ] = None,
) -> None:
    """Generate MRI and CT heads with labels, as NIfTI files; called again, it goes on.

    The exit code is 0, or 130 where it was stopped.
    """
    from voxelwave.jobs.synthesize.run import synthesize as run

    leave(run(out, num_mri=num_mri, num_ct=num_ct, size=size, seed=seed, workers=workers))
