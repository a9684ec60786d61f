"""Training of phantom embeddings: from a configuration to a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxelwave import __version__
from voxelwave.backbones.embedding2d import EmbeddingModel
from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.engine.loop import LoopSettings, Trainer
from voxelwave.engine.run_log import Record, read_metrics
from voxelwave.engine.runtime import close_runtime, make_fabric
from voxelwave.engine.schedule import plateau_factor, stalled
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import DivergedError, InputError
from voxelwave.evaluation.metric_learning import recall_at, triplet_scores
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import begin, check_settings_stay, open_run
from voxelwave.jobs.phantom.config import PhantomConfig, check_phantom_config
from voxelwave.jobs.phantom.data import PhantomBatch, PhantomSteps, all_batches, triplets
from voxelwave.jobs.phantom.figures import draw_learning
from voxelwave.objectives.metric_learning import MetricLearning
from voxelwave.ops.files import write_text
from voxelwave.ops.seeding import key_to_seed
from voxelwave.registry import EMBEDDINGS, METRIC_LOSSES

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": ("out_dir", "tensorboard", "license"),
    "data": ("num_workers",),
    "training": ("epochs", "learning_rate", "clip_norm", "device", "patience"),
}
LOSS = "validation_loss"


def train_phantoms(
    config: PhantomConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    Raises InputError for what cannot be used and DivergedError where the loss stops being finite.
    """
    console = console or Console()
    folder, training = config.run_folder(), config.training
    checkpoint = open_run(folder, resume=resume)
    check_settings_stay(folder, checkpoint, config.model_dump(mode="json"), FREE_TO_CHANGE)
    fabric = make_fabric(device=training.device, precision=training.precision)

    # 1. Phantoms: which batch belongs to which step.
    seed = config.run.seed
    steps = PhantomSteps(triplets(config.data, seed=seed, validation=False), batch_size=training.batch_size, seed=seed)
    held_out = triplets(config.data, seed=seed, validation=True)
    total_steps = training.epochs * steps.steps_per_epoch

    # 2. Model and optimiser. The rate follows from the losses of validation, which the log remembers.
    torch.manual_seed(seed)
    embedding = build_model(config)
    if checkpoint is None:
        _centre(embedding, steps[0].volume)
    objective = MetricLearning(embedding, METRIC_LOSSES.build(config.loss.name, **config.loss.settings))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay)
    model, optimizer = fabric.setup(objective, optimizer)
    count = sum(parameter.numel() for parameter in objective.parameters())
    console.say(f"{config.model.name}: {count:,} parameters")

    def losses() -> list[float]:
        return [record[LOSS] for record in log.records if LOSS in record]

    def learning_rate(step: int) -> float:
        plateau = training.plateau
        lowest = min(plateau.floor / training.learning_rate, 1.0)
        factor = plateau_factor(losses(), factor=plateau.factor, patience=plateau.patience, floor=lowest)
        return training.learning_rate * factor

    def loss(batch: Any, step: int) -> StepOutput:
        torch.manual_seed(key_to_seed(seed, "dropout", step))
        output: StepOutput = model(batch.volume.to(fabric.device), batch.numbers.to(fabric.device), step)
        return output

    def validated() -> dict[str, float]:
        if (trainer.state.step + 1) % steps.steps_per_epoch:
            return {}
        return validate(objective, all_batches(held_out, batch_size=training.batch_size), fabric.device)

    # 3. Train.
    trainer = Trainer(
        fabric,
        model,
        optimizer,
        loss,
        learning_rate,
        folder,
        {"config": config.model_dump(mode="json"), "voxelwave": __version__},
        settings=LoopSettings(
            total_steps=total_steps,
            steps_per_epoch=steps.steps_per_epoch,
            clip_norm=training.clip_norm,
            checkpoint_every_epochs=0,
            probe_every_steps=1,
        ),
        probe=validated,
        score=lambda row: float(row[LOSS]),
    )
    log = begin(trainer, checkpoint, folder, config, config.run, console)

    def given_up() -> bool:
        return training.patience is not None and stalled(losses(), training.patience)

    with stop_on_signal() as signalled, log:
        batches = steps.batches(trainer.state.step, total_steps, num_workers=config.data.num_workers)
        complete = given_up() or trainer.run(batches, log, lambda: signalled.asked or should_stop() or given_up())
        if not complete and not given_up():
            log.say(f"stopped at step {trainer.state.step} of {total_steps}; go on with --resume")
    close_runtime(fabric)
    if complete or given_up():
        _finish(folder, console)
        return True
    return False


def _centre(model: EmbeddingModel, images: Tensor) -> None:
    """Centre a model with random weights, and find out that it can read such images before anything is written."""
    try:
        model.centre(images)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        height, width = images.shape[2:]
        raise InputError(f"the model cannot read images of {height} × {width} pixels: {reason}") from None


def build_model(config: PhantomConfig) -> EmbeddingModel:
    """Return the model of a configuration with random weights."""
    settings = dict(config.model.settings)
    model: EmbeddingModel = EMBEDDINGS.build(config.model.name, 2 * config.data.num_coils, **settings)
    # Channels beside each other: a step of a small convolutional model takes less than half of the time on a CPU.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def load_phantom_model(path: Path) -> tuple[EmbeddingModel, PhantomConfig]:
    """Return the model of a run folder (its best weights) or of a checkpoint, in evaluation mode, and its settings.

    Raises InputError for a missing, damaged or foreign file.
    """
    file = path / "best_model.pth" if path.is_dir() else path
    checkpoint = load_checkpoint(file)
    try:
        config = check_phantom_config(checkpoint["config"], str(file))
        model = build_model(config)
        weights = {name.removeprefix("model."): of for name, of in checkpoint["model"].items()}
        model.load_state_dict({name: of for name, of in weights.items() if not name.startswith("loss.")})
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is no checkpoint of `voxelwave phantom train`: {reason}") from None
    return model.eval(), config


def validate(objective: MetricLearning, batches: Iterable[PhantomBatch], device: torch.device) -> dict[str, float]:
    """Return loss, distances, violations, and Recall@K of first views among second ones, as `validation_…`.

    Raises DivergedError where vectors are not finite.
    """
    embedding: EmbeddingModel = objective.model  # type: ignore[assignment]
    was_training = objective.training
    objective.eval()
    losses, sizes, vectors = [], [], []
    for batch in batches:
        embedded = embedding.embed(batch.volume.to(device)).unflatten(0, (3, -1))
        losses.append(float(objective.compare(embedded, batch.numbers.to(device), 0).loss))
        sizes.append(batch.numbers.shape[1])
        vectors.append(embedded.cpu().numpy())
        if not np.isfinite(vectors[-1]).all():
            raise DivergedError(f"the vectors of {', '.join(batch.files)} are no numbers: lower training.learning_rate")
    objective.train(was_training)
    first, second, third = np.concatenate(vectors, 1)
    scores = triplet_scores(first, second, third, margin=objective.loss.margin)
    measured = {name: scores[name] for name in ("d_pos", "d_neg", "violations")}
    recalls = {f"recall_at_{rank}": share for rank, share in recall_at(first, second).items()}
    mean = float(np.average(losses, weights=sizes))
    return {f"validation_{name}": value for name, value in {"loss": mean, **measured, **recalls}.items()}


def _finish(folder: Path, console: Console) -> None:
    """Draw the curves, and write what the best epoch reached."""
    records: list[Record] = read_metrics(folder / "metrics.jsonl")
    (folder / "figures").mkdir(exist_ok=True)
    draw_learning(records, folder / "figures" / "curves.png")
    best = min((record for record in records if LOSS in record), key=lambda record: record[LOSS])
    result = {name: value for name, value in best.items() if name.startswith("validation_") or name == "epoch"}
    write_text(folder / "results.json", json.dumps(result, indent=2) + "\n")
    shown = ", ".join(f"{name.removeprefix('validation_')} {value:.4g}" for name, value in result.items())
    console.say(f"done, the best epoch: {shown}; {folder}")
