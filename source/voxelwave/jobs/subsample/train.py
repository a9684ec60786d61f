"""Training of a network behind a mask: from a configuration to a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import BEST
from voxelwave.engine.loop import LoopSettings
from voxelwave.engine.optimizer import weight_decay_groups
from voxelwave.engine.schedule import stalled, warmup_cosine
from voxelwave.engine.validation import validation_means
from voxelwave.jobs.common.config import RunConfig
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.session import Session, ShouldStop
from voxelwave.jobs.subsample.config import OWN, SubsampleConfig, SubsampledModel
from voxelwave.jobs.subsample.data import SubsampleBatch, SubsampleSteps
from voxelwave.jobs.subsample.figures import draw_curves, draw_example, write_mask
from voxelwave.jobs.subsample.images import ImageSet, Parted
from voxelwave.jobs.subsample.model import Built, build, load_weights
from voxelwave.jobs.subsample.own_model import OwnModel
from voxelwave.jobs.subsample.parts import load_images
from voxelwave.jobs.subsample.scoring import by_network, open_once, opened_by_others, score, tuned_on_test, zero_filled
from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.files import size_and_sha256, write_text
from voxelwave.ops.seeding import key_to_seed
from voxelwave.ops.texts import to_json
from voxelwave.unrolled.learned_mask import LearnedMask

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": (*RunConfig.FREE_TO_CHANGE, "license"),
    "training": ("device", "deterministic", "patience"),
}
LOSS, RESULTS = "validation_loss", "results.json"
MASKS, PICTURES_OF_MASK = "masks", 8
VALIDATED_AT_ONCE = 16


def train_subsampled(
    config: SubsampleConfig,
    *,
    own: OwnModel | None = None,
    resume: bool = False,
    console: Console | None = None,
    should_stop: ShouldStop | None = None,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    The images of the test are scored at the end, with the best weights.

    Args:
        own: the model, where the configuration says that it is the user's own.

    Raises InputError for what cannot be used and DivergedError where the loss stops being finite.
    """
    if own is not None:
        config = config.model_copy(
            update={"model": SubsampledModel.model_validate({"name": OWN, "checksum": own.checksum})}
        )
    with Session(config, resume=resume, console=console, should_stop=should_stop) as session:
        session.check_continues(FREE_TO_CHANGE)
        parted = load_images(config.data, console=session.console)
        session.check_continues(FREE_TO_CHANGE, files=_files(parted), what="images")
        return session.run(
            partial(_train, config, parted, own),
            device=config.training.device,
            precision="fp32",
            deterministic=config.training.deterministic,
        )


def _train(config: SubsampleConfig, parted: Parted, own: OwnModel | None, session: Session) -> bool:
    training, seed, device = config.training, config.run.seed, session.fabric.device
    # 1. Images, mask, network.
    before = config.mask.epochs if config.mask.learn else 0
    steps = SubsampleSteps(parted.training, batch_size=training.batch_size, seed=seed, epochs_before=before)
    built = build(config, parted.training, own)
    spe = steps.steps_per_epoch
    settled_at = before * spe
    total = settled_at + training.epochs * spe
    layer, objective = built
    begin = _as_it_began(built)
    groups = weight_decay_groups(objective, training.weight_decay)
    model, optimizer = session.setup(objective, groups, learning_rate=training.learning_rate, betas=(0.9, 0.99))
    trained = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
    kind = f"learned by {config.mask.rule.name}" if config.mask.learn else config.mask.fixed
    session.console.say(
        f"{config.model.name}: {trained:,} trained parameters; mask {kind}, {int(layer.mask().sum()):,} of "
        f"{math.prod(layer.shape):,} frequencies; {spe} steps an epoch"
    )

    # 2. The mask takes a step of its own after that of the optimiser, until it is final.
    mask_lr = config.mask.mask_lr or layer.default_mask_lr

    def learning_rate(step: int) -> float:
        # While the mask moves the rate stays; behind the final one it falls as behind a fixed one.
        if step < settled_at:
            return training.learning_rate * min(1.0, (step + 1) / training.warmup_steps)
        done, left = step - settled_at, total - settled_at
        return training.learning_rate * warmup_cosine(done, total_steps=left, warmup_steps=training.warmup_steps)

    def loss(batch: SubsampleBatch, step: int) -> StepOutput:
        if step == settled_at and config.mask.learn:
            # From here on everything is as behind a fixed mask, weights and optimiser included.
            layer.settle()
            write_mask(layer.mask(), session.folder / MASKS / f"epoch_{before:04d}.png")
            begin()
            optimizer.optimizer.state.clear()  # type: ignore[attr-defined]  # Fabric's has torch's inside
        torch.manual_seed(key_to_seed(seed, "dropout", step - settled_at))
        output: StepOutput = model(batch.kspace.to(device))
        return output

    pictures = {round(part * settled_at / spe) for part in np.linspace(0, 1, PICTURES_OF_MASK)}

    def validated(step: int) -> dict[str, float]:
        if (step + 1) % spe:
            return {}
        epoch = (step + 1) // spe
        if isinstance(layer, LearnedMask) and epoch in pictures:
            write_mask(layer.mask(), session.folder / MASKS / f"epoch_{epoch:04d}.png")
        return validate(built, parted.validation, device)

    def final_losses() -> list[float]:
        return [record[LOSS] for record in session.records if LOSS in record and record["step"] >= settled_at]

    # 3. Train.
    if isinstance(layer, LearnedMask) and session.checkpoint is None:
        write_mask(layer.mask(), session.folder / MASKS / "epoch_0000.png")
    complete = session.train(
        *(model, optimizer, loss, steps.batches, learning_rate),
        settings=LoopSettings(
            total_steps=total,
            steps_per_epoch=spe,
            clip_norm=training.clip_norm,
            checkpoint_every_epochs=0,
            probe_every_steps=1,
            samples="images",
        ),
        shown=(LOSS, "validation_psnr_db"),
        metadata={"shape": list(layer.shape), "files": _files(parted)},
        after_step=lambda: layer.mask_step(mask_lr),
        probe=validated,
        # Weights for a mask that was not final are none to keep.
        score=lambda row: float(row[LOSS]) if row["epoch"] * spe > settled_at else math.inf,
        given_up=lambda: training.patience is not None and stalled(final_losses(), training.patience),
    )
    if complete:
        _finish(session, built, parted, settled_at)
    return complete


def _as_it_began(built: Built) -> Callable[[], None]:
    """Return what gives the network the weights that it has now, and leaves the mask as it is."""

    def of_network() -> dict[str, Tensor]:
        # By name, since moving a module to a device replaces its buffers.
        of_mask = set(map(id, built.layer.buffers()))
        named = (*built.objective.named_parameters(), *built.objective.named_buffers())
        return {name: value for name, value in named if id(value) not in of_mask}

    begun = {name: value.detach().clone() for name, value in of_network().items()}

    @torch.no_grad()
    def begin() -> None:
        for name, value in of_network().items():
            value.copy_(begun[name])

    return begin


def _files(parted: Parted) -> dict[str, str]:
    return {name: getattr(parted, name).fingerprint for name in ("training", "validation")}


def validate(built: Built, images: ImageSet, device: torch.device) -> dict[str, float]:
    """Return the mean of what the objective logs over the images of validation, as `validation_…`.

    Raises DivergedError where one is not finite.
    """
    with evaluating(built.objective):
        return validation_means(
            (built.objective(kspace.to(device)), len(kspace), "the images of validation")
            for kspace in images.kspace.split(VALIDATED_AT_ONCE)
        )


def _finish(session: Session, built: Built, parted: Parted, settled_at: int) -> None:
    """Score the best weights on every part, and draw curves, the mask and an example."""
    layer, objective = built
    load_weights(built, session.folder)
    sets = {"training": parted.training, "validation": parted.validation}
    if parted.open_test is not None:
        sets["test"] = open_once(session.folder, size_and_sha256(session.folder / BEST)[1], parted.open_test)
        if others := opened_by_others(session.folder, sets["test"]):
            session.console.say(tuned_on_test(others))
    network = by_network(objective, session.fabric.device)
    scores = {name: score(network, images) for name, images in sets.items()}
    objective.cpu()
    filled = {name: score(zero_filled(layer), images) for name, images in sets.items()}
    losses = [record for record in session.records if LOSS in record]
    best = min((record for record in losses if record["step"] >= settled_at), key=lambda record: record[LOSS])
    result = {
        "kept": int(layer.mask().sum()),
        "epochs": losses[-1]["epoch"],
        "best_epoch": best["epoch"],
        "data": {"kind": parted.kind, "volumes": parted.counts, "subjects_unknown": parted.unknown},
        "scores": {
            name: {"network": of.summary(), "zero_filled": filled[name].summary()} for name, of in scores.items()
        },
    }
    figures = session.folder / "figures"
    figures.mkdir(exist_ok=True)
    draw_curves(session.records, figures / "curves.png")
    write_mask(layer.mask(), session.folder / "mask.png")
    draw_example(list(sets.values())[-1], 0, layer, by_network(objective), figures / "example.png")
    write_text(session.folder / RESULTS, to_json(result))  # last: it says that the run is complete
    said = ", ".join(f"{name} {of.summary()['psnr_db']:.2f}" for name, of in scores.items())
    session.console.say(f"done, PSNR in dB: {said}; {session.folder}")
