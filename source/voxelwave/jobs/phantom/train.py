"""Training of phantom embeddings: from a configuration to a run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from voxelwave.backbones.embedding2d import EmbeddingModel
from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import BEST, best_weights, load_checkpoint, taken_for
from voxelwave.engine.loop import LoopSettings
from voxelwave.engine.run_log import Record
from voxelwave.engine.schedule import plateau_factor, stalled
from voxelwave.errors import DivergedError, InputError
from voxelwave.evaluation.metric_learning import triplet_scores
from voxelwave.evaluation.retrieval import recall_at
from voxelwave.jobs.common.collapse import CollapseWatch
from voxelwave.jobs.common.config import RunConfig
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.session import Session, ShouldStop
from voxelwave.jobs.phantom.config import PhantomConfig, check_phantom_config
from voxelwave.jobs.phantom.data import AllBatches, PhantomBatch, PhantomSteps, triplets
from voxelwave.jobs.phantom.figures import draw_learning
from voxelwave.objectives.metric_learning import MetricLearning
from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.seeding import key_to_seed
from voxelwave.ops.texts import one_line, to_json
from voxelwave.registry import EMBEDDINGS, METRIC_LOSSES

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": (*RunConfig.FREE_TO_CHANGE, "license", "prefix"),
    "data": ("num_workers",),
    "training": ("epochs", "learning_rate", "clip_norm", "device", "deterministic", "patience"),
}
LOSS = "validation_loss"
KEPT_BYTES = 2**30  # of images of validation: 200 phantoms of 128², 8 coils are 0.6 GB
TIE = 1e-6  # times a distance, which is at most 2: it decides between equal losses
REMEDY = (
    "Go on for some epochs, if there are any left; if it stays so, take more phantoms or epochs, a lower "
    "training.learning_rate, or the loss 'triplet' with data.rescan=false, which is the easier task"
)
# What a run also leaves under other names, where it has a prefix for them.
DOCUMENTED = {
    "history.csv": "history.csv",
    "figures/curves.png": "loss_curves.png",
    BEST: BEST,
}


def train_phantoms(
    config: PhantomConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: ShouldStop | None = None,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    Raises InputError for what cannot be used and DivergedError where the loss stops being finite.
    """
    training = config.training
    with Session(config, resume=resume, console=console, should_stop=should_stop) as session:
        session.check_continues(FREE_TO_CHANGE)
        return session.run(
            partial(_train, config),
            device=training.device,
            precision=training.precision,
            deterministic=training.deterministic,
        )


def _train(config: PhantomConfig, session: Session) -> bool:
    training, plateau, seed, device = config.training, config.training.plateau, config.run.seed, session.fabric.device
    # 1. Phantoms: which batch belongs to which step.
    steps = PhantomSteps(triplets(config.data, seed=seed, validation=False), batch_size=training.batch_size, seed=seed)
    of_validation = triplets(config.data, seed=seed, validation=True)
    held_out = AllBatches(of_validation, batch_size=training.batch_size, kept_bytes=KEPT_BYTES)

    # 2. Model and optimiser. The rate follows from the losses of validation, which the log remembers.
    torch.manual_seed(seed)
    embedding = build_model(config)
    if session.checkpoint is None:
        _begin(embedding, steps[0].images)
    objective = MetricLearning(embedding, METRIC_LOSSES.build(config.loss.name, **config.loss.settings))
    groups = [{"params": list(objective.parameters()), "weight_decay": training.weight_decay}]
    model, optimizer = session.setup(objective, groups, learning_rate=training.learning_rate)
    count = sum(parameter.numel() for parameter in objective.parameters())
    session.console.say(f"{config.model.name}: {count:,} parameters")

    watch = CollapseWatch(session.console, remedy=REMEDY)

    def learning_rate(step: int) -> float:
        lowest = min(plateau.floor / training.learning_rate, 1.0)
        losses = _validated(session, lambda record: record[LOSS])
        factor = plateau_factor(losses, factor=plateau.factor, patience=plateau.patience, floor=lowest)
        return training.learning_rate * factor

    def loss(batch: PhantomBatch, step: int) -> StepOutput:
        torch.manual_seed(key_to_seed(seed, "dropout", step))
        images, numbers = (of.to(device, non_blocking=True) for of in (batch.images, batch.numbers))
        output: StepOutput = model(images, numbers, step)
        return output

    def validated(step: int) -> dict[str, float]:
        if (step + 1) % steps.steps_per_epoch:
            return {}
        return validate(objective, held_out, device, watch=watch)

    def score(row: Record) -> float:
        watch.end_epoch(row["epoch"])
        return judged(row)

    # 3. Train.
    batches = partial(
        steps.batches,
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
        timeout_s=config.run.timeout_s,
    )
    complete = session.train(
        *(model, optimizer, loss, batches, learning_rate),
        settings=LoopSettings(
            total_steps=training.epochs * steps.steps_per_epoch,
            steps_per_epoch=steps.steps_per_epoch,
            clip_norm=training.clip_norm,
            checkpoint_every_epochs=0,
            probe_every_steps=1,
            samples="phantoms",
        ),
        shown=(LOSS, "validation_recall_at_1"),
        probe=validated,
        score=score,
        given_up=lambda: training.patience is not None and stalled(_validated(session, judged), training.patience),
    )
    if complete:
        _finish(session, config.run.prefix)
    return complete


def judged(record: Record) -> float:
    """Return how good the weights of an epoch are, lower being better: the loss of validation.

    Triplets may all keep their margin, so that the loss is 0 epoch after epoch. Of equal losses that one is better
    whose distance to other phantoms exceeds that between views by more.
    """
    return float(record[LOSS] - TIE * (record["validation_d_neg"] - record["validation_d_pos"]))


def _validated(session: Session, measure: Callable[[Record], float]) -> list[float]:
    """Return a measure of every validation so far."""
    return [measure(record) for record in session.records if LOSS in record]


def _begin(model: EmbeddingModel, images: Tensor) -> None:
    """Begin with random weights, and find out that the model can read such images before anything is written."""
    model.combine_coils()
    try:
        model.centre(images)
    except (RuntimeError, ValueError) as error:
        height, width = images.shape[2:]
        raise InputError(f"the model cannot read images of {height} × {width} pixels: {one_line(error)}") from None


def build_model(config: PhantomConfig) -> EmbeddingModel:
    """Return the model of a configuration with random weights."""
    settings, coils = dict(config.model.settings), config.data.num_virtual_coils or config.data.num_coils
    model: EmbeddingModel = EMBEDDINGS.build(config.model.name, 2 * coils, **settings)
    # Channels beside each other: a step of a small convolutional model takes less than half of the time on a CPU.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def load_phantom_model(path: Path) -> tuple[EmbeddingModel, PhantomConfig]:
    """Return the model of a run folder (its best weights) or of a checkpoint, in evaluation mode, and its settings.

    Raises InputError for a missing, damaged or foreign file.
    """
    file = best_weights(path)
    checkpoint = load_checkpoint(file)
    with taken_for(file, "checkpoint of `voxelwave phantom train`"):
        config = check_phantom_config(checkpoint["config"], str(file))
        model = build_model(config)
        weights = {name.removeprefix("model."): of for name, of in checkpoint["model"].items()}
        model.load_state_dict({name: of for name, of in weights.items() if not name.startswith("loss.")})
    return model.eval(), config


def validate(
    objective: MetricLearning, batches: Iterable[PhantomBatch], device: torch.device, *, watch: CollapseWatch
) -> dict[str, float]:
    """Return loss, distances, violations, and Recall@K of first views among second ones, as `validation_…`.

    `watch` is told each batch's loss, and that of vectors that are all the same.

    Raises DivergedError where vectors are not finite.
    """
    embedding: EmbeddingModel = objective.model  # type: ignore[assignment]
    losses, sizes, vectors = [], [], []
    with evaluating(objective):
        for batch in batches:
            embedded = embedding.embed(batch.images.to(device), None).unflatten(0, (3, -1))
            numbers = batch.numbers.to(device)
            losses.append(float(objective.compare(embedded, numbers, 0).loss))
            watch.saw(losses[-1], float(objective.compare(torch.ones_like(embedded), numbers, 0).loss))
            sizes.append(batch.numbers.shape[1])
            vectors.append(embedded.cpu().numpy())
            if not np.isfinite(vectors[-1]).all():
                names = ", ".join(batch.files)
                raise DivergedError(f"the vectors of {names} are no numbers: lower training.learning_rate")
    first, second, third = np.concatenate(vectors, 1)
    scores = triplet_scores(first, second, third, margin=objective.loss.margin)
    measured = {name: scores[name] for name in ("d_pos", "d_neg", "violations")}
    recalls = {f"recall_at_{rank}": share for rank, share in recall_at(first, second).items()}
    mean = float(np.average(losses, weights=sizes))
    return {f"validation_{name}": value for name, value in {"loss": mean, **measured, **recalls}.items()}


def _finish(session: Session, prefix: str) -> None:
    """Draw the curves, and write what the best epoch reached."""
    (session.folder / "figures").mkdir(exist_ok=True)
    draw_learning(session.records, session.folder / "figures" / "curves.png")
    best = min((record for record in session.records if LOSS in record), key=judged)
    result = {name: value for name, value in best.items() if name.startswith("validation_") or name == "epoch"}
    write_text(session.folder / "results.json", to_json(result))
    if prefix:
        for name, documented in DOCUMENTED.items():
            with replacing(session.folder / f"{prefix}{documented}") as part:
                shutil.copyfile(session.folder / name, part)
    shown = ", ".join(f"{name.removeprefix('validation_')} {value:.4g}" for name, value in result.items())
    session.console.say(f"done, the best epoch: {shown}; {session.folder}")
