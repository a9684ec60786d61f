"""The command `voxelwave`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from voxelwave import phantom_cli
from voxelwave.errors import DivergedError, InputError

STOPPED = 130  # as of a shell after Ctrl-C: what was to follow must not go on with half a run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Self-supervised 3D pretraining for brain MRI and CT.",
)

app.add_typer(phantom_cli.app, name="phantom")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. training.epochs=5.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from last.pth; start where there is none.")]


@app.command()
def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/pretrain.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Pretrain one model on MRI and CT, and leave weights, logs and figures in <out_dir>/<name>.

    The exit code is 0, or 130 where it was stopped.
    """
    from voxelwave.recipes.config import load_config
    from voxelwave.recipes.pretrain import pretrain as run

    _stopped_unless(run(load_config(config, overrides or []), resume=resume))


@app.command()
def finetune(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/finetune.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model for segmentation or classification on a pretrained backbone, and evaluate it.

    The exit code is 0, or 130 where it was stopped.
    """
    from voxelwave.recipes.finetune import finetune as run
    from voxelwave.recipes.finetune_config import load_finetune_config

    _stopped_unless(run(load_finetune_config(config, overrides or []), resume=resume))


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write mri/, ct/ and labels/ into.")],
    num_mri: Annotated[int, typer.Option(help="Number of MRI heads.")] = 8,
    num_ct: Annotated[int, typer.Option(help="Number of CT heads.")] = 8,
    size: Annotated[int, typer.Option(help="Voxels along each side.")] = 96,
    seed: Annotated[int, typer.Option(help="What all random shapes and contrasts follow from.")] = 0,
) -> None:
    """Generate MRI and CT heads with labels, as NIfTI files."""
    from voxelwave.recipes.synthesize import synthesize as run

    run(out, num_mri=num_mri, num_ct=num_ct, size=size, seed=seed)


@app.command(no_args_is_help=True)
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
    from voxelwave.recipes.prepare import Preparer, preparation

    how = preparation(
        modality=modality,
        spacing=spacing,
        crop=crop,
        four_d=four_d,
        hu_offset=hu_offset,
        overrides=overrides or [],
        subject=subject,
    )
    outcome = Preparer(out, how, workers=workers, strict=strict, holdout=holdout, labels=labels)(sources)
    if not outcome.complete or outcome.damaged:
        raise typer.Exit(1 if outcome.complete else STOPPED)


@app.command(no_args_is_help=True)
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished fine-tuning run.")],
    images: Annotated[str, typer.Argument(help="A file, a folder, a glob, a CSV list or a prepared data set.")],
    out: Annotated[
        Path, typer.Argument(help="Folder for label maps; a .csv for the probabilities of a classification.")
    ],
    modality: Annotated[str | None, typer.Option(help="Of every image, instead of telling it by rule.")] = None,
    overlap: Annotated[float, typer.Option(help="Of windows, as a share of their side.")] = 0.5,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.")] = 1,
) -> None:
    """Segment or classify images with a fine-tuned model; called again, it goes on.

    The exit code is 0, or 1 where files could not be used (each with its reason), or 130 where it was stopped.
    """
    from voxelwave.recipes.predict import predict as run_prediction

    outcome = run_prediction(run, images, out, modality=modality, overlap=overlap, batch_size=batch_size)
    if not outcome.complete or outcome.refused:
        raise typer.Exit(1 if outcome.complete else STOPPED)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A file, a folder, a glob or a CSV list.")],
    modality: Annotated[str | None, typer.Option(help="Take every file as this modality instead of guessing.")] = None,
) -> None:
    """Show what each file holds, and why it could not be used."""
    from voxelwave.recipes.inspect import inspect as run

    run(path, modality=modality)


@app.command(no_args_is_help=True)
def export(
    weights: Annotated[Path, typer.Argument(help="A run's folder, its backbone.safetensors, or a checkpoint.")],
    out: Annotated[Path, typer.Argument(help="A new folder; for torch a .pt2 file, for onnx an .onnx file.")],
    file_format: Annotated[str, typer.Option("--format", help="safetensors, torch, onnx or bundle.")],
    in_channels: Annotated[int | None, typer.Option(help="Of the volumes; adapts a backbone to another count.")] = None,
    img_size: Annotated[str | None, typer.Option(help="For torch and onnx: 96 or 96,96,64.")] = None,
) -> None:
    """Write a pretrained backbone or a fine-tuned model as files for elsewhere.

    Programs of torch and onnx are compared with PyTorch before they are written.
    """
    from voxelwave.recipes.export import export as run

    run(weights, out, file_format=file_format, in_channels=in_channels, img_size=img_size)


@app.command()
def doctor(
    folders: Annotated[list[Path] | None, typer.Argument(help="Folders that a run would write to.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="What has to be there: minkowski or cuda; may be repeated.")
    ] = None,
) -> None:
    """Show what is installed, what is missing and what to do, and train one step on each device.

    The exit code is 0 where voxelwave can train, 1 where something needed does not work.
    """
    from voxelwave.recipes.doctor import doctor as run

    if run(folders or [], require=require or []):
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def probe(
    weights: Annotated[Path, typer.Argument(help="A run folder, backbone.safetensors or a checkpoint.")],
    cases: Annotated[Path, typer.Argument(help="A CSV of cases, or a folder that synthesize or prepare wrote.")],
    modality: Annotated[str, typer.Option(help="Of images that say none; others are left out.")] = "",
    label: Annotated[str, typer.Option(help="A word in the names of label maps, where images have several.")] = "",
    targets: Annotated[str | None, typer.Option(help="E.g. lesion,contrast; all where not given.")] = None,
    label_classes: Annotated[
        str, typer.Option(help="Label values to tell apart, e.g. grey=6,deep=8+11; all where not given.")
    ] = "",
    depth: Annotated[
        int | None, typer.Option(help="The block after which features are taken; the last where not given.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Written over, with a picture beside it.")] = Path("probe.json"),
    seed: Annotated[int, typer.Option(help="Of the random backbone, the crops, the folds.")] = 0,
) -> None:
    """Show what frozen features tell of scans, beside those of the same backbone with random weights."""
    from voxelwave.recipes.probe import probe as run

    asked = None if targets is None else [name.strip() for name in targets.split(",") if name.strip()]
    run(
        *(weights, cases),
        modality=modality,
        label=label,
        targets=asked,
        label_classes=label_classes,
        depth=depth,
        out=out,
        seed=seed,
    )


@app.command(no_args_is_help=True)
def embed(
    weights: Annotated[Path, typer.Argument(help="A run folder, backbone.safetensors or a checkpoint.")],
    source: Annotated[str, typer.Argument(help="A file, folder, glob, CSV list, list of cases or prepared folder.")],
    out: Annotated[Path, typer.Argument(help="A .parquet, .csv or .npz file, written over.")],
    modality: Annotated[str | None, typer.Option(help="Of scans that do not say it, instead of telling it.")] = None,
    depth: Annotated[
        int | None, typer.Option(help="The block after which features are taken; the last where not given.")
    ] = None,
) -> None:
    """Write the features of whole scans, a row each, for search, clustering and simple classifiers.

    The exit code is 0, or 1 where files could not be used.
    """
    from voxelwave.recipes.embed import embed as run

    if run(weights, source, out, modality=modality, depth=depth):
        raise typer.Exit(1)


def main(command: typer.Typer = app) -> None:
    """Run a command; what the user can mend is one line on stderr and exit code 2, without a traceback."""
    try:
        command()
    except InputError as error:
        _fail(str(error), 2)
    except OSError as error:
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 2)
    except DivergedError as error:
        _fail(str(error), 1)


def foqus_train() -> None:
    """`voxelwave phantom train` under the name that it had before."""
    only = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    only.command()(phantom_cli.train)
    main(only)


def _stopped_unless(complete: bool) -> None:
    if not complete:
        raise typer.Exit(STOPPED)


def _fail(message: str, code: int) -> None:
    print(f"voxelwave: {message}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code)
