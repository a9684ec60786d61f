"""The command `voxelwave`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from voxelwave.errors import DivergedError, InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Self-supervised 3D pretraining for brain MRI and CT.",
)

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
    """Pretrain one model on MRI and CT, and leave weights, logs and figures in <out_dir>/<name>."""
    from voxelwave.recipes.config import load_config
    from voxelwave.recipes.pretrain import pretrain as run

    run(load_config(config, overrides or []), resume=resume)


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


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A file, a folder, a glob or a CSV list.")],
    modality: Annotated[str | None, typer.Option(help="Take every file as this modality instead of guessing.")] = None,
) -> None:
    """Show what each file holds, and why it could not be used."""
    from voxelwave.recipes.inspect import inspect as run

    run(path, modality=modality)


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


def _fail(message: str, code: int) -> None:
    print(f"voxelwave: {message}", file=sys.stderr)  # noqa: T201
    raise SystemExit(code)
