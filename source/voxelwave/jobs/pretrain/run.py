"""Pretraining: from a configuration to a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from voxelwave import __version__
from voxelwave.contracts import StepOutput
from voxelwave.downstream.description import describe_run
from voxelwave.downstream.load_backbone import save_backbone
from voxelwave.engine.loop import LoopSettings, Trainer, TrainingBatch
from voxelwave.engine.run_log import read_metrics
from voxelwave.engine.runtime import close_runtime, make_fabric
from voxelwave.engine.schedule import warmup_cosine
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import begin, check_settings_stay, open_run
from voxelwave.jobs.pretrain.config import Config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.figures import draw_curves, draw_reconstructions
from voxelwave.jobs.pretrain.gauges import OnlineProbe
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer, count_parameters
from voxelwave.jobs.pretrain.sparse_choice import choose_sparse
from voxelwave.objectives.masked_modeling import MaskedModeling
from voxelwave.ops.seeding import torch_generator

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": ("out_dir", "tensorboard"),
    "model": ("sparse",),
    "data": ("num_workers", "check_content", "probe_cases"),
    "training": (
        *("epochs", "max_steps", "learning_rate", "clip_norm", "device", "compile"),
        *("probe_every_steps", "checkpoint_every_steps", "checkpoint_every_epochs"),
    ),
}


def pretrain(
    config: Config,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    `should_stop` is asked after every step, beside SIGINT and SIGTERM. Raises InputError for what cannot be used and
    DivergedError where the loss stops being finite.
    """
    console = console or Console()
    folder = config.run_folder()
    checkpoint = open_run(folder, resume=resume)
    check_settings_stay(folder, checkpoint, config.model_dump(mode="json"), FREE_TO_CHANGE)
    training = config.training
    fabric = make_fabric(device=training.device, precision=training.precision, devices=training.devices)
    if not fabric.is_global_zero:
        console = Console(quiet=True)
    complete = _train(config, folder, checkpoint, fabric, console, should_stop or (lambda: False))
    # The wrapped model is gone with the frame above: it must not outlive the process group.
    close_runtime(fabric)
    return complete


def _train(
    config: Config,
    folder: Path,
    checkpoint: dict[str, Any] | None,
    fabric: Any,
    console: Console,
    should_stop: Callable[[], bool],
) -> bool:
    training = config.training
    # 1. Data: which files, and which batch belongs to which step. The model is built first: it checks its settings.
    pretrainer = build_pretrainer(config)
    data = TrainingData(
        config,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        pin_memory=fabric.device.type == "cuda",
        console=console,
    )
    total_steps = training.epochs * data.steps_per_epoch
    total_steps = min(total_steps, training.max_steps or total_steps)

    # 2. Model, optimiser, schedule.
    _print_parameters(pretrainer, console)
    if training.compile:
        _compile(pretrainer)
    optimizer = torch.optim.AdamW(
        _parameter_groups(pretrainer, training.weight_decay), lr=training.learning_rate, betas=(0.9, 0.95)
    )
    model, optimizer = fabric.setup(pretrainer, optimizer)
    sparse = choose_sparse(config, pretrainer, fabric, _sparse_of(checkpoint))
    console.say(sparse.said)
    warmup_steps = round(training.warmup_share * total_steps)

    def learning_rate(step: int) -> float:
        factor = warmup_cosine(step, total_steps=total_steps, warmup_steps=warmup_steps)
        return training.learning_rate * factor

    def objective(batch: TrainingBatch, index: int) -> StepOutput:
        generator = torch_generator(config.run.seed, "mask", fabric.global_rank, index)
        output: StepOutput = model(data.augmented(batch, index, fabric.device), generator)
        return output

    # 3. Train.
    trainer = Trainer(
        fabric,
        model,
        optimizer,
        objective,
        learning_rate,
        folder,
        {
            "config": config.model_dump(mode="json"),
            "voxelwave": __version__,
            "files": data.fingerprint(),
            "sparse": sparse.name,
        },
        settings=LoopSettings(
            total_steps=total_steps,
            steps_per_epoch=data.steps_per_epoch,
            accumulate=training.accumulate,
            clip_norm=training.clip_norm,
            checkpoint_every_steps=training.checkpoint_every_steps,
            checkpoint_every_epochs=training.checkpoint_every_epochs,
            probe_every_steps=training.probe_every_steps,
        ),
        after_step=pretrainer.after_step,
        probe=OnlineProbe(config, pretrainer, data, writes=fabric.is_global_zero, console=console),
    )
    if checkpoint is not None:
        _check_same_files(checkpoint, data, folder)
    log = begin(trainer, checkpoint, folder, config, config.run, console, writes=fabric.is_global_zero)
    with stop_on_signal() as signalled, log:
        batches = data.batches(trainer.state.step, total_steps)
        complete = trainer.run(batches, log, lambda: signalled.asked or should_stop())

    # 4. What the run leaves.
    if fabric.is_global_zero:
        if complete:
            resolved, counts = config.model_dump(mode="json"), data.counts()
            described = describe_run(resolved, volumes=counts, step=trainer.state.step, version=__version__)
            save_backbone(folder, pretrainer.backbone.state_dict(), described)  # type: ignore[attr-defined]
            _draw(folder, pretrainer, data, fabric.device)
            log.say(f"done: {folder}")
        else:
            log.say(f"stopped at step {trainer.state.step} of {total_steps}; go on with --resume")
    return complete


def _sparse_of(checkpoint: dict[str, Any] | None) -> str | None:
    """The backend that a run had so far; there was but one before checkpoints said which."""
    return None if checkpoint is None else checkpoint.get("sparse", "dense")


def _check_same_files(checkpoint: dict[str, Any], data: TrainingData, folder: Path) -> None:
    """Refuse to go on with other volumes: the order of all of them would be another."""
    if checkpoint.get("files") != (now := data.fingerprint()):
        raise InputError(
            f"cannot resume {folder}: its volumes were {checkpoint.get('files')} and are {now} now (number and "
            f"checksum of the names); restore the files, or start another run.name"
        )


def _parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, norms, gates' vectors and tokens do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _compile(pretrainer: MaskedModeling) -> None:
    """Compile the parts whose shapes stay the same from step to step, in place: names of weights do not change."""
    for block in pretrainer.backbone.blocks:
        block.compile()
    pretrainer.decoder.compile()


def _print_parameters(pretrainer: MaskedModeling, console: Console) -> None:
    counts = count_parameters(pretrainer)
    table = Table("part", "parameters", title="pretrainer")
    table.columns[1].justify = "right"
    for part, count in counts.items():
        table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("total", f"{sum(counts.values()):,}")
    console.print(table)


def _draw(folder: Path, pretrainer: MaskedModeling, data: TrainingData, device: torch.device) -> None:
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    draw_curves(read_metrics(folder / "metrics.jsonl"), figures / "losses.png")
    rows, titles = [], []
    for modality, batch in data.picture_batches().items():
        generator = torch_generator(data.seed, "figure", modality)
        pictures = pretrainer.pictures(batch.volume.to(device), generator)
        titles = list(pictures)
        for number, file in enumerate(batch.files):
            label = f"{modality.upper()}  {Path(file).name}"
            rows.append((label, [picture[number, 0].cpu().numpy() for picture in pictures.values()]))
    draw_reconstructions(rows, titles, figures / "reconstructions.png")
