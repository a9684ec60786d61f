"""The command `voxelwave synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write mri/, ct/ and labels/ into.")],
    num_mri: Annotated[int, typer.Option(help="Number of MRI heads.")] = 8,
    num_ct: Annotated[int, typer.Option(help="Number of CT heads.")] = 8,
    size: Annotated[int, typer.Option(help="Voxels along each side.")] = 96,
    seed: Annotated[int, typer.Option(help="What all random shapes and contrasts follow from.")] = 0,
) -> None:
    """Generate MRI and CT heads with labels, as NIfTI files."""
    from voxelwave.jobs.synthesize.run import synthesize as run

    run(out, num_mri=num_mri, num_ct=num_ct, size=size, seed=seed)
