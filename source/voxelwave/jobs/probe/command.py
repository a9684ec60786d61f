"""The command `voxelwave probe`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import Depth, Weights


def probe(
    weights: Weights,
    cases: Annotated[Path, typer.Argument(help="A CSV of cases, or a folder that synthesize or prepare wrote.")],
    modality: Annotated[str, typer.Option(help="Of images that say none; others are left out.")] = "",
    label: Annotated[str, typer.Option(help="A word in the names of label maps, where images have several.")] = "",
    targets: Annotated[str | None, typer.Option(help="E.g. lesion,contrast; all where not given.")] = None,
    label_classes: Annotated[
        str, typer.Option(help="Label values to tell apart, e.g. grey=6,deep=8+11; all where not given.")
    ] = "",
    transfer: Annotated[
        str, typer.Option(help="E.g. mri:ct,T1:T2, fitted on one and read on the other; by modality where not given.")
    ] = "",
    depth: Depth = None,
    out: Annotated[Path, typer.Option(help="Written over, with a picture beside it.")] = Path("probe.json"),
    seed: Annotated[int, typer.Option(help="Of the random backbone, the crops, the folds.")] = 0,
) -> None:
    """Show what frozen features tell of scans, beside random weights and raw voxels."""
    from voxelwave.jobs.probe.run import probe as run

    asked = None if targets is None else [name.strip() for name in targets.split(",") if name.strip()]
    run(
        *(weights, cases),
        modality=modality,
        label=label,
        targets=asked,
        label_classes=label_classes,
        transfer=transfer,
        depth=depth,
        out=out,
        seed=seed,
    )
