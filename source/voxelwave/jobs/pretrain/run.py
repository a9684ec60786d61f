"""Pretraining: from a configuration to a run folder."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from voxelwave import __version__
from voxelwave.contracts import StepOutput
from voxelwave.data.foreground import cropped_at
from voxelwave.downstream.description import describe_run
from voxelwave.downstream.load_backbone import save_backbone
from voxelwave.engine.loop import LoopSettings
from voxelwave.engine.optimizer import weight_decay_groups
from voxelwave.engine.run_log import Record
from voxelwave.engine.schedule import warmup_cosine_rate
from voxelwave.jobs.common.collapse import CollapseWatch
from voxelwave.jobs.common.config import RunConfig
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import marks_of
from voxelwave.jobs.common.session import Session, ShouldStop
from voxelwave.jobs.pretrain.config import Config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.figures import curves_figure, draw_reconstructions
from voxelwave.jobs.pretrain.gauges import OnlineProbe, Saturation
from voxelwave.jobs.pretrain.pair_data import PairData
from voxelwave.jobs.pretrain.pretrainer import Pretrainer, build_pretrainer, count_parameters
from voxelwave.jobs.pretrain.rendered_pair_data import RenderedPairData
from voxelwave.jobs.pretrain.scan_pair_data import ScanPairData
from voxelwave.jobs.pretrain.sparse_choice import NOTHING_SPARSE, choose_sparse, hardly_masked
from voxelwave.objectives.masked_modeling import MaskedModeling
from voxelwave.ops.seeding import torch_generator

REMEDY = (
    "Train on, if there are steps left; if it stays so, lower training.learning_rate, raise training.warmup_share or "
    "the temperature of the loss, or look with `voxelwave inspect` whether the volumes show anything"
)
# What may differ between a run and its continuation: none of it changes what the finished steps computed.
FREE_TO_CHANGE = {
    "run": RunConfig.FREE_TO_CHANGE,
    "model": ("sparse",),
    "data": ("num_workers", "check_content", "probe_cases"),
    "training": (
        *("epochs", "max_steps", "learning_rate", "clip_norm", "device", "deterministic", "compile"),
        *("probe_every_steps", "checkpoint_every_steps", "checkpoint_every_epochs", "checkpoint_optimizer"),
    ),
}


def pretrain(
    config: Config,
    *,
    resume: bool = False,
    console: Console | None = None,
    should_stop: ShouldStop | None = None,
) -> bool:
    """Train as `config` says; True where the run is complete, False where it was stopped and can be resumed.

    `should_stop` is asked after every step, beside the signals that ask to stop. Raises InputError for what cannot be
    used and DivergedError where the loss stops being finite.
    """
    training = config.training
    with Session(config, resume=resume, console=console, should_stop=should_stop, devices=training.devices) as session:
        session.check_continues(FREE_TO_CHANGE)
        return session.run(
            partial(_train, config),
            device=training.device,
            precision=training.precision,
            deterministic=training.deterministic,
        )


def _train(config: Config, session: Session) -> bool:
    training, fabric, console = config.training, session.fabric, session.console
    # 1. Data: which files, and which batch belongs to which step. The model is built first: it checks its settings.
    pretrainer = build_pretrainer(config)
    pairs = config.data.pairs
    kind = TrainingData if pairs is None else RenderedPairData if pairs.of_labels else ScanPairData
    data = kind(
        config,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        pin_memory=fabric.device.type == "cuda",
        console=console,
    )
    files, contents = data.fingerprint(), data.contents()
    cropped = cropped_at(data.trained_on())
    session.check_continues(FREE_TO_CHANGE, files=files, contents=contents)
    total_steps = training.epochs * data.steps_per_epoch
    total_steps = min(total_steps, training.max_steps or total_steps)

    # 2. Model and optimiser.
    console.print(_parameter_table(pretrainer))
    if training.compile:
        _compile(pretrainer)
    groups = weight_decay_groups(pretrainer, training.weight_decay)
    model, optimizer = session.setup(pretrainer, groups, learning_rate=training.learning_rate, betas=(0.9, 0.95))
    # There was but one backend before checkpoints said which.
    before = None if session.checkpoint is None else session.checkpoint.get("sparse", "dense")
    sparse = NOTHING_SPARSE
    if isinstance(pretrainer, MaskedModeling):
        sparse = choose_sparse(config, pretrainer, fabric, before)
        hint = hardly_masked(config, pretrainer.masking, pretrainer.backbone.patch_size)
        console.say(sparse.said, *filter(None, [hint]))

    contrastive_weight = getattr(pretrainer, "contrastive_weight", 0.0)
    contrasts = contrastive_weight > 0
    watch = CollapseWatch(console, remedy=REMEDY)
    solved = Saturation(console, weight=contrastive_weight)

    def objective(batch: Any, index: int) -> StepOutput:
        generator = torch_generator(config.run.seed, "mask", fabric.global_rank, index)
        seen = data.augmented(batch, index, fabric.device)
        # The last turns of all modalities in an epoch are looked at.
        left = -(index // training.accumulate + 1) % data.steps_per_epoch
        with watch.watching(getattr(pretrainer, "contrastive", None), wanted=contrasts and left < len(data.counts())):
            output: StepOutput = model(seen, generator)
        return output

    def score(row: Record) -> float:
        watch.end_epoch(row["epoch"])
        loss = solved(row)
        # Part of an epoch, perhaps of one modality, counts where there is no whole one.
        return loss if (row["step"] + 1) % data.steps_per_epoch == 0 else sys.float_info.max

    # 3. Train.
    complete = session.train(
        *(model, optimizer, objective, data.batches),
        warmup_cosine_rate(training.learning_rate, total_steps=total_steps, warmup_share=training.warmup_share),
        settings=LoopSettings(
            total_steps=total_steps,
            steps_per_epoch=data.steps_per_epoch,
            accumulate=training.accumulate,
            clip_norm=training.clip_norm,
            checkpoint_every_steps=training.checkpoint_every_steps,
            checkpoint_every_epochs=training.checkpoint_every_epochs,
            probe_every_steps=training.probe_every_steps,
            checkpoint_optimizer=training.checkpoint_optimizer,
        ),
        shown=("reconstruction", "contrastive"),
        metadata={"files": files, "contents": marks_of(contents), "sparse": sparse.name, "cropped": cropped},
        after_step=pretrainer.after_step,
        probe=OnlineProbe(config, pretrainer, data, cropped=cropped, writes=session.is_first, console=console),
        score=score,
    )

    # 4. What the run leaves.
    if complete and session.is_first:
        described = describe_run(
            config.model_dump(mode="json"),
            volumes=data.counts(),
            cropped=cropped,
            step=session.steps,
            version=__version__,
        )
        save_backbone(session.folder, pretrainer.backbone.state_dict(), described)  # type: ignore[attr-defined]
        _draw(session, pretrainer, data)
        console.say(f"done: {session.folder}")
    return complete


def _compile(pretrainer: Pretrainer) -> None:
    """Compile the parts whose shapes stay the same from step to step, in place: names of weights do not change."""
    for block in pretrainer.backbone.blocks:
        block.compile()
    if isinstance(pretrainer, MaskedModeling):
        pretrainer.decoder.compile()


def _parameter_table(pretrainer: Pretrainer) -> Table:
    counts = count_parameters(pretrainer)
    table = Table("part", "parameters", title="pretrainer")
    table.columns[1].justify = "right"
    for part, count in counts.items():
        table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("total", f"{sum(counts.values()):,}")
    return table


def _draw(session: Session, pretrainer: Pretrainer, data: TrainingData | PairData) -> None:
    figures = session.folder / "figures"
    figures.mkdir(exist_ok=True)
    curves_figure(session.records).savefig(figures / "losses.png", dpi=90)
    rows, titles = [], []
    for modality, batch in data.picture_batches().items():
        generator = torch_generator(data.seed, "figure", modality)
        pictures = pretrainer.pictures(batch.volume.to(session.fabric.device), generator)
        titles = list(pictures)
        for number, file in enumerate(batch.files):
            label = f"{modality.upper()}  {Path(file).name}"
            rows.append((label, [picture[number, 0].cpu().numpy() for picture in pictures.values()]))
    draw_reconstructions(rows, titles, figures / "reconstructions.png")
