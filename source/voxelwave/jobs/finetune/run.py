"""Fine-tuning: from a configuration and a backbone to a model of a task, its predictions and its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from voxelwave import __version__
from voxelwave.contracts import StepOutput
from voxelwave.downstream.finetuned import add_head_for
from voxelwave.engine.loop import LoopSettings, Trainer, TrainingBatch
from voxelwave.engine.run_log import Record
from voxelwave.engine.runtime import close_runtime, make_fabric
from voxelwave.engine.schedule import stalled, warmup_cosine
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import begin, check_settings_stay, open_run, write_config
from voxelwave.jobs.finetune.config import FinetuneConfig
from voxelwave.jobs.finetune.data import Held
from voxelwave.jobs.finetune.finish import finish, steps_of_results
from voxelwave.jobs.finetune.fold import Prepared, prepare_fold
from voxelwave.jobs.finetune.layers import freeze, parameter_groups
from voxelwave.jobs.finetune.results import RESULTS, over_folds, write_results
from voxelwave.ops.files import write_text

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": ("out_dir", "tensorboard", "figures", "license"),
    "task": ("hausdorff",),
    "backbone": ("path",),
    "training": ("max_steps", "learning_rate", "clip_norm", "device", "patience", "checkpoint_every_steps"),
}


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: Callable[[], bool] | None = None,
    kept: MutableMapping[Any, Held] | None = None,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    Args:
        should_stop: asked after every step, beside SIGINT and SIGTERM.
        kept: a dictionary in which several runs share what they read of their cases.

    Raises:
        InputError: for what cannot be used.
        DivergedError: where the loss stops being finite.
    """
    console, stop = console or Console(), should_stop or (lambda: False)
    kept = {} if kept is None else kept
    folder = config.run_folder()
    if config.data.fold != "all":
        return _finetune_fold(config, resume, console, stop, kept)

    # 1. Whatever is wrong with any fold is said before the first is trained; cases are read once for all.
    open_run(folder, resume=resume)
    folds = [_of_fold(config, number) for number in range(config.data.folds)]
    for fold in folds:
        checkpoint = open_run(fold.run_folder(), resume=resume)
        prepared = prepare_fold(fold, checkpoint, kept, Console(quiet=True))
        _check_continues(prepared, checkpoint)
    # 2. Each is a run of its own.
    write_config(folder, config)
    for fold in folds:
        if not _finetune_fold(fold, resume, console, stop, kept):
            return False
    # 3. What they say together.
    results = [json.loads((fold.run_folder() / RESULTS).read_text(encoding="utf-8")) for fold in folds]
    parts = [{part: result[part] for part in ("validation", "test") if part in result} for result in results]
    write_results(folder, {"task": config.task.name, "folds": len(folds), **over_folds(parts)})
    console.say(f"done, all {len(folds)} folds: {folder}")
    return True


def _of_fold(config: FinetuneConfig, number: int) -> FinetuneConfig:
    fold = config.model_copy(deep=True)
    fold.data.fold = number
    fold.run.out_dir, fold.run.name = config.run_folder(), f"fold_{number}"
    return fold


def _finetune_fold(
    config: FinetuneConfig,
    resume: bool,
    console: Console,
    should_stop: Callable[[], bool],
    kept: MutableMapping[Any, Held],
) -> bool:
    folder = config.run_folder()
    checkpoint = open_run(folder, resume=resume)
    if any(folder.glob("fold_*")):
        raise InputError(f"{folder} holds a run of all folds: choose another run.name, or data.fold=all")
    if checkpoint is not None and "description" not in checkpoint:
        raise InputError(f"{folder} holds a run of another command: choose another run.name")
    prepared = prepare_fold(config, checkpoint, kept, console)
    config = prepared.config
    _check_continues(prepared, checkpoint)
    fabric = make_fabric(device=config.training.device, precision=config.training.precision)
    _introduce(prepared, console)
    complete = _train(prepared, folder, checkpoint, fabric, console, should_stop)
    close_runtime(fabric)
    return complete


def _check_continues(prepared: Prepared, checkpoint: dict[str, Any] | None) -> None:
    """Raise InputError where a run is to go on with other settings or other cases."""
    folder = prepared.config.run_folder()
    check_settings_stay(folder, checkpoint, prepared.config.model_dump(mode="json"), FREE_TO_CHANGE)
    if checkpoint is not None and checkpoint["files"] != (now := prepared.data.fingerprint()):
        raise InputError(
            f"cannot resume {folder}: its cases were {checkpoint['files']} and are {now} now (number and checksum of "
            f"names and subjects); restore them, or start another run.name"
        )


def _train(
    prepared: Prepared,
    folder: Path,
    checkpoint: dict[str, Any] | None,
    fabric: Any,
    console: Console,
    should_stop: Callable[[], bool],
) -> bool:
    config, task, data = prepared.config, prepared.task, prepared.data
    training, total_steps = config.training, config.training.max_steps
    # 1. Model, optimiser, schedule.
    module = add_head_for(prepared.features, prepared.description["task"], config.run.seed).train()
    if config.backbone.train == "frozen":
        freeze(prepared.features)
    groups = parameter_groups(
        module,
        weight_decay=training.weight_decay,
        layer_decay=config.backbone.layer_decay,
        lr_scale=config.backbone.lr_scale,
    )
    model, optimizer = fabric.setup(module, torch.optim.AdamW(groups, lr=training.learning_rate))
    warmup_steps = round(training.warmup_share * total_steps)

    def learning_rate(step: int) -> float:
        factor = warmup_cosine(step, total_steps=total_steps, warmup_steps=warmup_steps)
        return training.learning_rate * factor

    def objective(batch: TrainingBatch, step: int) -> StepOutput:
        volume, target = data.augmented(batch, step, fabric.device)
        return task.loss(model(volume), target)

    def validated() -> dict[str, float]:
        done = trainer.state.step + 1
        due = done % training.validate_every_steps == 0 or done == total_steps
        return task.validate(model, data.validation) if data.validation and due else {}

    # 2. Train.
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
            "description": prepared.description,
        },
        settings=LoopSettings(
            total_steps=total_steps,
            steps_per_epoch=training.validate_every_steps,
            clip_norm=training.clip_norm,
            checkpoint_every_steps=training.checkpoint_every_steps,
            checkpoint_every_epochs=0,
            probe_every_steps=1,
        ),
        probe=validated,
        # Without validation nothing tells which weights are the best: the last ones are taken.
        score=lambda row: -row[task.score] if data.validation else math.inf,
    )
    log = begin(trainer, checkpoint, folder, config, config.run, console)
    if checkpoint is None and prepared.features.report is not None:
        write_text(folder / "load_report.json", json.dumps(asdict(prepared.features.report), indent=2) + "\n")

    def given_up() -> bool:
        return patience_is_over(log.records, task.score, training.patience)

    with stop_on_signal() as signalled, log:
        complete = given_up() or trainer.run(
            data.batches(trainer.state.step, total_steps),
            log,
            lambda: signalled.asked or should_stop() or given_up(),
        )
        if not complete and not given_up():
            log.say(f"stopped at step {trainer.state.step} of {total_steps}; go on with --resume")
            return False

    # 3. What the run leaves.
    step = trainer.state.step
    if steps_of_results(folder) == step:
        console.say(f"{folder} is complete: delete its {RESULTS} to evaluate anew")
    else:
        finish(prepared, folder, model, module, step, console)
    return True


def patience_is_over(records: Sequence[Record], score: str, patience: int | None) -> bool:
    """Tell whether the best score lies `patience` validations back, or more."""
    return patience is not None and stalled([-record[score] for record in records if score in record], patience)


def _introduce(prepared: Prepared, console: Console) -> None:
    """Say what is trained on, and what of the backbone was loaded."""
    data = prepared.data
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    counts = ", ".join(f"{len(of)} {name}" for name, of in parts.items())
    left_out = f"; {prepared.left_out} left out, none of whose targets is known" if prepared.left_out else ""
    lines = [f"cases: {counts}{left_out}"]
    modalities = {part: {one.case.modality for one in of} for part, of in parts.items()}
    lines += [
        f"note: {part} has cases of {name}, of which none is trained on"
        for part, names in modalities.items()
        for name in sorted(names - modalities["training"])
    ]
    if prepared.features.report is not None:
        lines.append(f"backbone: {prepared.features.report}")
    for line in lines:
        console.say(line)
