"""The commands below `voxelwave phantom`, and `foqus-train`, which trains the run as it was first described."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from voxelwave.errors import InputError
from voxelwave.jobs.common.options import Resume, run_at, train_and_leave

Config = Annotated[
    Path | None, typer.Argument(help="A YAML file, see configs/phantom; without one the run that the command is for.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key, e.g. loss.temperature=0.1; an option of its own wins over it.",
    ),
]
Checkpoint = Annotated[Path, typer.Argument(help="A run folder, of which the best weights are taken, or a checkpoint.")]
# What the options of `train` set.
KEYS = {
    "epochs": "training.epochs",
    "train_length": "data.train_length",
    "val_length": "data.val_length",
    "batch_size": "training.batch_size",
    "num_workers": "data.num_workers",
    "image_size": "data.image_size",
    "n_coils": "data.num_coils",
    "lr": "training.learning_rate",
    "margin": "loss.margin",
    "device": "training.device",
    "prefix": "run.prefix",
}


def train(
    config: Config = None,
    overrides: Overrides = None,
    resume: Resume = False,
    epochs: Annotated[int | None, typer.Option(help="training.epochs")] = None,
    train_length: Annotated[int | None, typer.Option(help="data.train_length")] = None,
    val_length: Annotated[int | None, typer.Option(help="data.val_length")] = None,
    batch_size: Annotated[int | None, typer.Option(help="training.batch_size")] = None,
    num_workers: Annotated[int | None, typer.Option(help="data.num_workers")] = None,
    image_size: Annotated[int | None, typer.Option(help="data.image_size")] = None,
    n_coils: Annotated[int | None, typer.Option(help="data.num_coils")] = None,
    lr: Annotated[float | None, typer.Option(help="training.learning_rate")] = None,
    margin: Annotated[float | None, typer.Option(help="loss.margin")] = None,
    device: Annotated[str | None, typer.Option(help="training.device: auto, cpu, cuda")] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="run.prefix: also write history, curves and best weights under names that begin so."),
    ] = None,
) -> None:
    """Train an embedding, and leave curves, history, scores and the best weights in the folder of the run.

    The exit code is 0, or run.exit_code_when_stopped (130) where it was stopped.
    """
    _train(locals(), described=False)


@wraps(train, assigned=("__annotations__",))
def foqus_train(**given: Any) -> None:
    """Train the run as it was first described: triplets of views of one scan; a second run in its folder goes on.

    A CONFIG stands for itself, and `voxelwave phantom train` is the same for it. The exit code is that of that command.
    """
    _train(given | {"resume": True}, described=True)


def _train(given: Mapping[str, Any], *, described: bool) -> None:
    # Threads that spin while they wait take the core that the worker renders phantoms on, and a run takes a quarter
    # longer on two cores. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from voxelwave.jobs.phantom.config import DESCRIBED, REFERENCE, load_phantom_config
    from voxelwave.jobs.phantom.train import train_phantoms

    flags = {key: given[name] for name, key in KEYS.items() if given[name] is not None} | run_at(given["out_dir"])
    with _in_words_of_options(described or flags.keys() - {"run.out_dir"}):
        base = DESCRIBED if described else REFERENCE
        config = load_phantom_config(given["config"], given["overrides"] or [], flags, base=base)
        train_and_leave(config, lambda: train_phantoms(config, resume=given["resume"]))


@contextmanager
def _in_words_of_options(wanted: object) -> Iterator[None]:
    """Where it is `wanted`, name in an error the options in place of the keys that they set."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for name, key in KEYS.items():
            text = text.replace(f"'{key}'", f"--{name.replace('_', '-')}")
        for old in ("start another run.name", "choose another run.name"):
            text = text.replace(old, "choose another --out-dir")
        raise type(error)(text if wanted else str(error)) from None


def preview(
    config: Config = None,
    overrides: Overrides = None,
    samples: Annotated[int, typer.Option(min=1, max=200, help="Phantoms to draw.")] = 6,
    out_dir: Annotated[Path, typer.Option(help="Folder for phantoms.png.")] = Path("phantom_preview"),
    acceleration: Annotated[float | None, typer.Option(help="Of the first view.")] = None,
    center_fraction: Annotated[float | None, typer.Option(help="Of the first view.")] = None,
    max_rotation: Annotated[float | None, typer.Option(help="Degrees, of both views.")] = None,
    max_shift: Annotated[float | None, typer.Option(help="Pixels, of both views.")] = None,
    seed: Annotated[int | None, typer.Option(help="run.seed")] = None,
    prefix: Annotated[str, typer.Option(help="A file a phantom instead, named PREFIXsample_N.png.")] = "",
) -> None:
    """Draw phantoms and what the model sees of them, as a PNG; no display is needed."""
    from voxelwave.jobs.phantom.config import check_phantom_config, load_phantom_config
    from voxelwave.jobs.phantom.preview import preview_phantoms

    raw = load_phantom_config(config, overrides or []).model_dump(mode="json")
    first, second = raw["data"]["first"], raw["data"]["second"]
    sampling = {"acceleration": acceleration, "center_fraction": center_fraction}
    first["sampling"] |= {key: value for key, value in sampling.items() if value is not None}
    moved = {"max_degrees": max_rotation, "max_shift": max_shift}
    for of in (first, second):
        of |= {key: value for key, value in moved.items() if value is not None}
    if seed is not None:
        raw["run"]["seed"] = seed
    raw["run"]["prefix"] = prefix or raw["run"]["prefix"]
    checked = check_phantom_config(raw, "options")
    preview_phantoms(checked, out_dir, samples=samples)


def evaluate(
    checkpoint: Checkpoint,
    out: Annotated[Path | None, typer.Option(help="Folder; `evaluation` in the run where not given.")] = None,
) -> None:
    """Score an embedding on phantoms that it was not trained on, and draw maps of them."""
    from voxelwave.jobs.phantom.evaluate import evaluate_phantoms

    evaluate_phantoms(checkpoint, out)


def embed(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="A .npz file, written over.")],
) -> None:
    """Write the vectors of both views of the phantoms of validation."""
    from voxelwave.jobs.phantom.evaluate import embed_phantoms

    embed_phantoms(checkpoint, out)
