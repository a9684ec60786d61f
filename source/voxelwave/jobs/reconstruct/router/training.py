"""The router: tells the anatomy of a volume from its images, so that the specialist for it can be taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from voxelwave.backbones.anatomy_classifier import AnatomyClassifier
from voxelwave.contracts import StepOutput
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.engine.checkpoint import best_weights, load_checkpoint, taken_for
from voxelwave.engine.loop import LoopSettings
from voxelwave.engine.optimizer import weight_decay_groups
from voxelwave.engine.schedule import warmup_cosine_rate
from voxelwave.engine.validation import validation_means
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import RunConfig
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.kspace_files import drawn_to_validate, find_kspace, fingerprint, open_kspace
from voxelwave.jobs.common.run_folder import marks_of
from voxelwave.jobs.common.session import Session, ShouldStop
from voxelwave.jobs.reconstruct.router.config import RouterConfig, check_router_config
from voxelwave.jobs.reconstruct.router.data import RouterBatch, RouterSteps, RouterVolume, batch_of, volume_images
from voxelwave.ops.evaluating import evaluating
from voxelwave.ops.files import write_text
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.ops.texts import to_json
from voxelwave.physics.samplings.one_of import OneOf
from voxelwave.registry import SAMPLINGS

# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": (*RunConfig.FREE_TO_CHANGE, "license"),
    "training": ("epochs", "learning_rate", "device", "deterministic"),
}
LOSS, ACCURACY = "validation_loss", "validation_accuracy"
WARMUP_SHARE = 0.1
FEWEST_EPOCHS, FEWEST_STEPS = 5, 600  # where the configuration does not say how many


class Router(NamedTuple):
    """A trained network in evaluation mode, the names of its classes, and how it sees a volume."""

    network: AnatomyClassifier
    anatomies: tuple[str, ...]
    image_size: int
    max_slices: int


def train_router_from(
    config: RouterConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: ShouldStop | None = None,
) -> bool:
    """Train on the files that the configuration names; see `train_router`."""
    volumes = {
        name: list(dict.fromkeys(path for place in given for path in find_kspace(place)))
        for name, given in config.data.anatomies.items()
    }
    return train_router(config, volumes, resume=resume, console=console, should_stop=should_stop)


def train_router(
    config: RouterConfig,
    volumes: Mapping[str, Sequence[Path]],
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: ShouldStop | None = None,
) -> bool:
    """Train on `volumes`, by anatomy; True where the run is complete, False where it was stopped and can be resumed.

    Raises InputError for what cannot be used, such as one file that is of two anatomies, and DivergedError where the
    loss stops being finite.
    """
    names: dict[Path, str] = {}
    for anatomy, paths in volumes.items():
        for path in paths:
            if names.setdefault(path.resolve(), anatomy) != anatomy:
                raise InputError(f"{path} is given as {names[path.resolve()]} and as {anatomy}: it can be one of them")
    training = config.training
    with Session(config, resume=resume, console=console, should_stop=should_stop) as session:
        session.check_continues(FREE_TO_CHANGE)
        return session.run(
            partial(_train, config, {anatomy: volumes[anatomy] for anatomy in sorted(volumes)}),
            device=training.device,
            precision="fp32",
            deterministic=training.deterministic,
        )


def _train(config: RouterConfig, paths: Mapping[str, Sequence[Path]], session: Session) -> bool:
    training, seed, device = config.training, config.run.seed, session.fabric.device
    # 1. Volumes, each read once: their images are small.
    files, contents = fingerprint(paths)
    session.check_continues(FREE_TO_CHANGE, files=files, contents=contents)
    volumes, held_out = _volumes(config, paths, device, session.console)
    steps = RouterSteps(volumes, batch_size=training.batch_size, flip=config.data.flip, seed=seed)

    # 2. Model and optimiser.
    torch.manual_seed(key_to_seed(seed, "weights"))
    network = AnatomyClassifier(len(paths))
    groups = weight_decay_groups(network, training.weight_decay)
    model, optimizer = session.setup(network, groups, learning_rate=training.learning_rate)
    counts = f"{len(volumes)} volumes, {len(held_out)} of validation"
    session.console.say(f"router of {', '.join(paths)}: {counts}, {steps.steps_per_epoch} steps an epoch")

    def loss(batch: RouterBatch, step: int) -> StepOutput:
        return _compared(model, batch, device)

    def validated(step: int) -> dict[str, float]:
        if not held_out or (step + 1) % steps.steps_per_epoch:
            return {}
        return validate(network, held_out, device)

    # 3. Train.
    total_steps = epochs_of(training.epochs, steps.steps_per_epoch) * steps.steps_per_epoch
    complete = session.train(
        *(model, optimizer, loss, steps.batches),
        warmup_cosine_rate(training.learning_rate, total_steps=total_steps, warmup_share=WARMUP_SHARE),
        settings=LoopSettings(
            total_steps=total_steps, steps_per_epoch=steps.steps_per_epoch, probe_every_steps=1, samples="volumes"
        ),
        shown=(LOSS, ACCURACY) if held_out else ("accuracy",),
        metadata={"files": files, "contents": marks_of(contents), "anatomies": list(paths)},
        probe=validated,
        score=lambda row: float(row[LOSS] if held_out else row["loss"]),
    )
    if complete and held_out:
        best = min((record for record in session.records if LOSS in record), key=lambda record: float(record[LOSS]))
        result = {name: best[name] for name in ("epoch", LOSS, ACCURACY)}
        write_text(session.folder / "results.json", to_json(result))
    if complete:
        session.console.say(f"done: {session.folder}")
    return complete


def epochs_of(asked: int | None, steps_per_epoch: int) -> int:
    """Return the number of epochs, which few volumes need more of: 5, or as many as 600 steps take, for None."""
    return asked or max(FEWEST_EPOCHS, -(-FEWEST_STEPS // steps_per_epoch))


def _volumes(
    config: RouterConfig, paths: Mapping[str, Sequence[Path]], device: torch.device, console: Console
) -> tuple[list[RouterVolume], list[RouterVolume]]:
    """Return the volumes of training and those of validation, a share of each anatomy's.

    A mask that is drawn belongs to the place of a file in the list, and not to its name.
    """
    data, seed = config.data, config.run.seed
    sampling = OneOf([SAMPLINGS.build(one.name, **one.settings) for one in data.samplings])
    training: list[RouterVolume] = []
    validation: list[RouterVolume] = []
    for label, (anatomy, of) in enumerate(paths.items()):
        files = open_kspace(of, skip_unusable=data.skip_unusable, console=console)
        count = round(data.validation_share * len(files))
        if data.validation_share:
            count = min(max(count, 1), len(files) - 1)
        generator = torch_generator(seed, "validation", anatomy)
        held_out = drawn_to_validate([file.path for file in files], count, generator)
        if data.validation_share and not held_out:
            of_one = f"one file, {files[0].path}" if len(files) == 1 else f"one subject, in {len(files)} files"
            console.say(f"of {anatomy} there is {of_one}: it is trained on, and not validated")
        for number, file in enumerate(tracked(files, f"reading {anatomy}")):
            generator = torch_generator(seed, "sampling", anatomy, number)
            images = volume_images(
                file, sampling, generator, device=device, image_size=data.image_size, max_slices=data.max_slices
            )
            group = validation if number in held_out else training
            group.append(RouterVolume(images, label, str(file.path)))
    return training, validation


def _compared(model: torch.nn.Module, batch: RouterBatch, device: torch.device) -> StepOutput:
    labels = batch.labels.to(device)
    logits = model(batch.images.to(device), batch.counts)
    loss = F.cross_entropy(logits, labels)
    accuracy = (logits.detach().argmax(1) == labels).float().mean()
    return StepOutput(loss, {"loss": loss.detach(), "accuracy": accuracy})


def validate(network: AnatomyClassifier, volumes: Sequence[RouterVolume], device: torch.device) -> dict[str, float]:
    """Return the means over volumes of the loss, and of how many are told right, as `validation_…`."""
    with evaluating(network):
        return validation_means((_compared(network, batch_of([of]), device), 1, of.file) for of in volumes)


def load_router(path: Path) -> Router:
    """Return the router of a run folder (its best weights) or of a checkpoint.

    Raises InputError for a missing, damaged or foreign file.
    """
    file = best_weights(path)
    checkpoint = load_checkpoint(file)
    with taken_for(file, "checkpoint of a router"):
        config = check_router_config(checkpoint["config"], str(file))
        anatomies = tuple(str(name) for name in checkpoint["anatomies"])
        network = AnatomyClassifier(len(anatomies))
        network.load_state_dict(checkpoint["model"])
    return Router(network.eval(), anatomies, config.data.image_size, config.data.max_slices)


def anatomy_of(router: Router, file: KspaceFile) -> tuple[str, float]:
    """Return the anatomy that a volume is most likely of, and how likely the router takes it to be.

    Raises InputError for slices that cannot be used.
    """
    device = next(router.network.parameters()).device
    images = volume_images(file, image_size=router.image_size, max_slices=router.max_slices, device=device)
    with torch.no_grad():
        likely, number = router.network(images.to(device), [len(images)]).softmax(1)[0].max(0)
    return router.anatomies[int(number)], float(likely)
