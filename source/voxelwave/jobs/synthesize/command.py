"""The command `voxelwave synthesize`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.errors import InputError
from voxelwave.jobs.common.options import leave


def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write mri/, ct/ and labels/ into.")],
    num_mri: Annotated[int | None, typer.Option(help="Number of MRI heads; 8, or none with --num-heads.")] = None,
    num_ct: Annotated[int | None, typer.Option(help="Number of CT heads; 8, or none with --num-heads.")] = None,
    num_heads: Annotated[int, typer.Option(help="Number of heads that are shown in each of --contrasts.")] = 0,
    contrasts: Annotated[str | None, typer.Option(help="Of these heads.", show_default="T1,T2,FLAIR,MRA,CT")] = None,
    size: Annotated[int, typer.Option(help="Voxels along each side.")] = 96,
    seed: Annotated[int, typer.Option(help="What all random shapes and contrasts follow from.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; as many as are worth their start where not given.")
    ] = None,
) -> None:
    """Generate MRI and CT heads with labels, as NIfTI files; called again, it goes on.

    The exit code is 0, or 130 where it was stopped.
    """
    from voxelwave.jobs.synthesize.run import CONTRASTS
    from voxelwave.jobs.synthesize.run import synthesize as run

    if contrasts is not None and not num_heads:
        raise InputError("--contrasts are those of --num-heads: say how many heads are shown in each of them")
    default = 0 if num_heads else 8
    outcome = run(
        out,
        num_mri=default if num_mri is None else num_mri,
        num_ct=default if num_ct is None else num_ct,
        num_heads=num_heads,
        contrasts=CONTRASTS if contrasts is None else [name.strip() for name in contrasts.split(",")],
        size=size,
        seed=seed,
        workers=workers,
    )
    leave(outcome)
