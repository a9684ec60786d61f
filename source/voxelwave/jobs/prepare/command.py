"""The command `voxelwave prepare`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import leave


def prepare(
    sources: Annotated[list[str], typer.Argument(help="Folders or files: NIfTI, MGZ, NRRD, DICOM series.")],
    out: Annotated[Path, typer.Argument(help="Folder of the data set; called again, it goes on.")],
    modality: Annotated[str | None, typer.Option(help="Of every scan, instead of telling it by rule.")] = None,
    spacing: Annotated[str, typer.Option(help="In mm: one number, three (1,1,2), or native.")] = "1.0",
    crop: Annotated[bool, typer.Option(help="Crop to the foreground.")] = True,
    four_d: Annotated[str, typer.Option(help="Of files of several volumes: refuse, first or all.")] = "refuse",
    hu_offset: Annotated[float, typer.Option(help="Added to one-channel CT, e.g. -1024.")] = 0.0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="E.g. mri.percentiles=[1,99].")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Regular expression whose group is the subject.")] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Share of subjects to mark as test; as before where not given.")
    ] = None,
    labels: Annotated[bool, typer.Option(help="Store label maps beside their images.")] = True,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core where not given.")] = None,
    strict: Annotated[bool, typer.Option(help="End at the first file that cannot be read.")] = False,
) -> None:
    """Make a data set for training of any folders of scans.

    The exit code is 0, or 1 where files could not be read (the last lines say how many), or 130 where it was stopped.
    """
    from voxelwave.jobs.prepare.run import Preparer
    from voxelwave.jobs.prepare.settings import preparation

    how = preparation(
        modality=modality,
        spacing=spacing,
        crop=crop,
        four_d=four_d,
        hu_offset=hu_offset,
        overrides=overrides or [],
        subject=subject,
    )
    leave(Preparer(out, how, workers=workers, strict=strict, holdout=holdout, labels=labels)(sources))
