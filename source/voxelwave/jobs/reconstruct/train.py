"""Training of one network in blocks of epochs: one run, whose rate, augmentation and masks follow from the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn

from voxelwave.contracts import StepOutput
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.listing.discovery import home_expanded
from voxelwave.engine.loop import LoopSettings
from voxelwave.engine.optimizer import weight_decay_groups
from voxelwave.engine.validation import validation_means
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import RunConfig
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.kspace_files import fingerprint
from voxelwave.jobs.common.run_folder import marks_of
from voxelwave.jobs.common.session import Session, ShouldStop
from voxelwave.jobs.reconstruct.batch import ReconstructionBatch
from voxelwave.jobs.reconstruct.config import ReconstructionConfig, ReconstructionData
from voxelwave.jobs.reconstruct.curves import draw_example, draw_training
from voxelwave.jobs.reconstruct.data import HeldOut, ReconstructionSteps, find_files
from voxelwave.jobs.reconstruct.model import build_network, num_slices
from voxelwave.jobs.reconstruct.schedule import Block, block_at, blocks_of
from voxelwave.jobs.reconstruct.synthesis.synthesize import synthesize_missing
from voxelwave.losses.image_mask import THRESHOLDS
from voxelwave.objectives.supervised_reconstruction import reconstructed
from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.files import write_text
from voxelwave.ops.loggers import logger
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.ops.texts import to_json
from voxelwave.registry import RECONSTRUCTION_OBJECTIVES

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": (*RunConfig.FREE_TO_CHANGE, "license"),
    "data": ("num_workers", "skip_unusable"),
    "training": ("device", "deterministic", "checkpoint_every_epochs"),
}
LOSS = "validation_loss"


def train_reconstruction(
    config: ReconstructionConfig,
    *,
    block: int | None = None,
    resume: bool = False,
    console: Console | None = None,
    should_stop: ShouldStop | None = None,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    Args:
        block: ends the run with this block, counted from 1; one after the first goes on from the end of that before.

    Raises InputError for what cannot be used and DivergedError where the loss stops being finite.
    """
    blocks = blocks_of(config.blocks)
    if block is not None and not 1 <= block <= len(blocks):
        raise InputError(f"there are blocks 1 to {len(blocks)}, got {block}")
    last = blocks[-1] if block is None else blocks[block - 1]
    training = config.training
    if not made_missing(config.data, console or Console()):
        return False
    resume = resume or (last.number > 1 and block is not None)
    with Session(config, resume=resume, console=console, should_stop=should_stop) as session:
        session.check_continues(FREE_TO_CHANGE)
        return session.run(
            partial(_train, config, last, chained=block is None),
            device=training.device,
            precision=training.precision,
            deterministic=training.deterministic,
        )


def _train(config: ReconstructionConfig, block: Block, session: Session, *, chained: bool) -> bool:
    training, seed, device = config.training, config.run.seed, session.fabric.device
    # 1. Model, then files: which slice belongs to which step.
    torch.manual_seed(key_to_seed(seed, "weights"))
    network = build_network(config)
    kind = RECONSTRUCTION_OBJECTIVES.get(training.objective.name)
    files = find_files(config.data, seed=seed, console=session.console, needs_target=kind.needs_target)
    neighbours = num_slices(network) // 2
    _warn_of_unit(config.data, files.training[0])
    steps = ReconstructionSteps(config, files.training, neighbours=neighbours)
    held_out = HeldOut(config, files.validation, neighbours=neighbours) if files.validation else None
    spe = steps.steps_per_epoch
    if spe == 0:
        raise InputError(f"the files hold fewer slices than training.accumulate={training.accumulate}: lower it")
    names, contents = fingerprint(files.named)
    session.check_continues(FREE_TO_CHANGE, files=names, contents=contents, what="files of k-space")
    _check_begun(session, steps, block.first, chained=chained)

    # 2. Objective and optimiser.
    objective = RECONSTRUCTION_OBJECTIVES.build(training.objective.name, network, **training.objective.settings)
    groups = weight_decay_groups(objective, training.weight_decay)
    model, optimizer = session.setup(
        objective, groups, learning_rate=config.blocks[0].learning_rate, offload=training.offload_optimizer
    )
    session.console.say(_described(config, network, files.named, spe))
    first_micros = {(one.first - 1) * spe * training.accumulate for one in steps.blocks[1:]}

    def learning_rate(step: int) -> float:
        # In the middle of a step, so that the first one of a warm-up moves.
        return block_at(steps.blocks, steps.epoch_of(step)).learning_rate((step + 0.5) / spe)

    def loss(batch: ReconstructionBatch, micro: int) -> StepOutput:
        if micro in first_micros:
            optimizer.optimizer.state.clear()  # type: ignore[attr-defined]  # Fabric's has torch's inside
        output: StepOutput = model(batch.to(device), torch_generator(seed, "objective", micro))
        return output

    def validated(step: int) -> dict[str, float]:
        if held_out is None or (step + 1) % spe:
            return {}
        return validate(objective, held_out, device, seed=seed)

    # 3. Train.
    batches = partial(steps.batches, num_workers=config.data.num_workers, timeout_s=config.run.timeout_s)
    complete = session.train(
        *(model, optimizer, loss, batches, learning_rate),
        settings=LoopSettings(
            total_steps=block.last * spe,
            steps_per_epoch=spe,
            accumulate=training.accumulate,
            clip_norm=training.clip_norm,
            checkpoint_every_epochs=training.checkpoint_every_epochs,
            probe_every_steps=1,
            samples="slices",
        ),
        shown=(LOSS, "validation_nmse") if held_out else ("nmse",),
        metadata={"files": names, "contents": marks_of(contents)},
        probe=validated,
        # Without validation, later weights are better ones.
        score=lambda row: float(row[LOSS]) if LOSS in row else -float(row["epoch"]),
    )
    if complete:
        _finish(session, network, held_out[len(held_out) // 2] if held_out else steps.whole(0))
    return complete


def made_missing(data: ReconstructionData, console: Console) -> bool:
    """Make the files that the configuration says how to make, unless they are there; False where that was stopped."""
    return all(
        settings is None or synthesize_missing(home_expanded(str(place)), settings, console=console).complete
        for place, settings in ((data.files, data.synthesize), (data.validation, data.synthesize_validation))
    )


def _check_begun(session: Session, steps: ReconstructionSteps, first_epoch: int, *, chained: bool) -> None:
    """Raise InputError where a block is to be trained by itself before those ahead of it."""
    done = 0 if session.checkpoint is None else int(session.checkpoint["step"])
    needed = (first_epoch - 1) * steps.steps_per_epoch
    if not chained and done < needed:
        epochs = done // steps.steps_per_epoch
        raise InputError(
            f"{session.folder}: a block goes on from epoch {first_epoch - 1}, and {epochs} were trained: train the "
            "block before, or leave --block out to train all of them in order"
        )


def _warn_of_unit(data: ReconstructionData, file: KspaceFile) -> None:
    """Say where the mask of the anatomy leaves nothing of the images, which then count whole."""
    targets = [target for index in range(len(file)) if (target := file.target(index)) is not None]
    if data.anatomy and targets and max(float(target.max()) for target in targets) <= THRESHOLDS[data.anatomy]:
        logger.warning(
            "note: %s: nothing of its target is bright enough for the mask of the challenge, it seems to be in another "
            "unit: its similarity is that of the whole image",
            file.path,
        )


def _described(config: ReconstructionConfig, network: nn.Module, named: Mapping[str, list[Path]], spe: int) -> str:
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    counts = ", ".join(f"{len(paths)} files of {group}" for group, paths in named.items())
    return f"{config.model.name}: {trained:,} trained parameters; {counts}; {spe} steps an epoch"


def validate(objective: nn.Module, held_out: HeldOut, device: torch.device, *, seed: int) -> dict[str, float]:
    """Return the mean of what the objective logs over the slices of validation, as `validation_…`.

    Raises DivergedError where one is not finite.
    """

    def output(index: int) -> tuple[StepOutput, int, str]:
        batch = held_out[index]
        return objective(batch.to(device), torch_generator(seed, "validation", index)), 1, batch.files[0]

    with evaluating(objective):
        return validation_means(map(output, range(len(held_out))))


def _finish(session: Session, network: nn.Module, batch: ReconstructionBatch) -> None:
    """Draw curves and an example, and write what the last epoch reached."""
    (session.folder / "figures").mkdir(exist_ok=True)
    draw_training(session.records, session.folder / "figures" / "losses.png")
    with evaluating(network):
        image = reconstructed(network, batch.to(session.fabric.device)).cpu()
    draw_example(batch, image, session.folder / "figures" / "example.png")
    last = session.records[-1]
    epoch = [record for record in session.records if record["epoch"] == last["epoch"]]
    result = {"epoch": last["epoch"], "loss": math.fsum(record["loss"] for record in epoch) / len(epoch)}
    result |= {name: value for name, value in last.items() if name.startswith("validation_")}
    write_text(session.folder / "results.json", to_json(result))
    said = ", ".join(f"{name} {value:.4g}" for name, value in result.items())
    session.console.say(f"done, the last epoch: {said}; {session.folder}")
