"""Fine-tuning: from a configuration and a backbone to a model of a task, its predictions and its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from voxelwave.contracts import StepOutput
from voxelwave.downstream.finetuned import add_head_for
from voxelwave.engine.loop import LoopSettings
from voxelwave.engine.run_log import Record
from voxelwave.engine.schedule import stalled, warmup_cosine_rate
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import RunConfig
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import claimed, marks_of, open_run, write_config
from voxelwave.jobs.common.session import Session, ShouldStop
from voxelwave.jobs.finetune.config import FinetuneConfig
from voxelwave.jobs.finetune.data import Held, LabelledBatch
from voxelwave.jobs.finetune.fold import Fold, prepare_fold
from voxelwave.jobs.finetune.layers import freeze, parameter_groups
from voxelwave.jobs.finetune.results import RESULTS, finish, over_folds, read_results, steps_of_results, write_results
from voxelwave.ops.files import write_text

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": (*RunConfig.FREE_TO_CHANGE, "figures", "license"),
    "task": ("hausdorff",),
    "backbone": ("path",),
    "training": (
        *("max_steps", "learning_rate", "clip_norm", "device", "deterministic", "patience"),
        "checkpoint_every_steps",
    ),
}

Kept = MutableMapping[Any, Held]


def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: ShouldStop | None = None,
    kept: Kept | None = None,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    Args:
        should_stop: asked after every step, beside the signals that ask to stop.
        kept: a dictionary in which several runs share what they read of their cases.

    Raises:
        InputError: for what cannot be used.
        DivergedError: where the loss stops being finite.
    """
    console, kept = console or Console(), {} if kept is None else kept
    opened = partial(Session, resume=resume, console=console, should_stop=should_stop)
    if config.data.fold == "all":
        with claimed(config.run_folder()):
            return _finetune_folds(config, opened, kept, console, resume=resume)
    with opened(config) as session:
        return _finetune_fold(config, session, kept)


def _finetune_folds(
    config: FinetuneConfig, opened: Callable[[FinetuneConfig], Session], kept: Kept, console: Console, *, resume: bool
) -> bool:
    # 1. Whatever is wrong with any fold is said before the first is trained; cases are read once for all.
    folder = config.run_folder()
    open_run(folder, resume=resume)
    folds = [_of_fold(config, number) for number in range(config.data.folds)]
    for fold in folds:
        with opened(fold) as session:
            _prepared(fold, session, kept, Console(quiet=True))
    # 2. Each is a run of its own.
    write_config(folder, config)
    for fold in folds:
        with opened(fold) as session:
            if not _finetune_fold(fold, session, kept):
                return False
    # 3. What they say together.
    results = [read_results(fold.run_folder()) for fold in folds]
    parts: list[dict[str, Any]] = [
        {part: result[part] for part in ("validation", "test") if part in result} for result in results
    ]
    write_results(folder, {"task": config.task.name, "folds": len(folds), **over_folds(parts)})
    console.say(f"done, all {len(folds)} folds: {folder}")
    return True


def _of_fold(config: FinetuneConfig, number: int) -> FinetuneConfig:
    fold = config.model_copy(deep=True)
    fold.data.fold = number
    fold.run.out_dir, fold.run.name = config.run_folder(), f"fold_{number}"
    return fold


def _finetune_fold(config: FinetuneConfig, session: Session, kept: Kept) -> bool:
    if any(session.folder.glob("fold_*")):
        raise InputError(f"{session.folder} holds a run of all folds: choose another run.name, or data.fold=all")
    fold = _prepared(config, session, kept, session.console)
    session.console.say(*fold.introduction())
    training = fold.config.training
    return session.run(
        partial(_train, fold),
        device=training.device,
        precision=training.precision,
        deterministic=training.deterministic,
    )


def _prepared(config: FinetuneConfig, session: Session, kept: Kept, console: Console) -> Fold:
    """Return the fold of `config`; raises InputError where a run is to go on with other settings or other cases."""
    if session.checkpoint is not None and "description" not in session.checkpoint:
        raise InputError(f"{session.folder} holds a run of another command: choose another run.name")
    fold = prepare_fold(config, session.checkpoint, kept, console)
    session.config = fold.config
    session.check_continues(FREE_TO_CHANGE, files=fold.data.fingerprint(), contents=fold.data.contents, what="cases")
    return fold


def _train(fold: Fold, session: Session) -> bool:
    config, task, data = fold.config, fold.task, fold.data
    training, total_steps = config.training, config.training.max_steps
    # 1. Model and optimiser.
    module = add_head_for(fold.features, fold.description["task"], config.run.seed).train()
    if config.backbone.train == "frozen":
        freeze(fold.features)
    groups = parameter_groups(
        module,
        weight_decay=training.weight_decay,
        layer_decay=config.backbone.layer_decay,
        lr_scale=config.backbone.lr_scale,
    )
    model, optimizer = session.setup(module, groups, learning_rate=training.learning_rate)

    def objective(batch: LabelledBatch, step: int) -> StepOutput:
        volume, target = data.augmented(batch, step, session.fabric.device)
        return task.loss(model(volume), target)

    def validated(step: int) -> dict[str, float]:
        due = (step + 1) % training.validate_every_steps == 0 or step + 1 == total_steps
        return task.validate(model, data.validation) if data.validation and due else {}

    # 2. Train.
    if session.checkpoint is None and fold.features.report is not None:
        session.folder.mkdir(parents=True, exist_ok=True)
        report = json.dumps(asdict(fold.features.report), indent=2)
        write_text(session.folder / "load_report.json", report + "\n")
    complete = session.train(
        *(model, optimizer, objective, data.batches),
        warmup_cosine_rate(training.learning_rate, total_steps=total_steps, warmup_share=training.warmup_share),
        settings=LoopSettings(
            total_steps=total_steps,
            steps_per_epoch=training.validate_every_steps,
            clip_norm=training.clip_norm,
            checkpoint_every_steps=training.checkpoint_every_steps,
            checkpoint_every_epochs=0,
            probe_every_steps=1,
        ),
        shown=(task.score, "validation_loss"),
        metadata={"files": data.fingerprint(), "contents": marks_of(data.contents), "description": fold.description},
        probe=validated,
        # Without validation nothing tells which weights are the best: the last ones are taken.
        score=lambda row: -row[task.score] if data.validation else math.inf,
        given_up=lambda: patience_is_over(session.records, task.score, training.patience),
    )

    # 3. What the run leaves.
    if complete and steps_of_results(session.folder) == session.steps:
        session.console.say(f"{session.folder} is complete: delete its {RESULTS} to evaluate anew")
    elif complete:
        finish(fold, session, model, module)
    return complete


def patience_is_over(records: Sequence[Record], score: str, patience: int | None) -> bool:
    """Tell whether the best score lies `patience` validations back, or more."""
    return patience is not None and stalled([-record[score] for record in records if score in record], patience)
