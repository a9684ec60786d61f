"""One training run in its folder: what every job that trains does around its model, its data and its objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from voxelwave import __version__
from voxelwave.engine.determinism import deterministic_algorithms
from voxelwave.engine.loop import LoopSettings, Objective, Probe, Score, Trainer, TrainingBatch
from voxelwave.engine.optimizer import OffloadedAdamW
from voxelwave.engine.run_log import Record, RunLog
from voxelwave.engine.runtime import (
    Precision,
    close_runtime,
    end_ranks,
    is_told_by_first_rank,
    launched_rank,
    make_fabric,
)
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import ProcessFault
from voxelwave.jobs.common.config import JobConfig
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import (
    Checkpoint,
    Contents,
    check_contents_stay,
    check_files_stay,
    check_settings_stay,
    claimed,
    open_run,
    write_config,
)

ShouldStop = Callable[[], bool]


def never() -> bool:
    """Return False: nobody asks to stop."""
    return False


class Session:
    """A run of `config`: begun, or resumed where its folder holds a checkpoint.

    A job enters the session as a context, which keeps other processes out of the folder, checks with it that a
    resumed run is the same one, and hands `run` a function, which builds model and data, and calls `setup` and
    `train`. What distributes a model over processes, and what handles their faults, has its place here.

    Attributes:
        folder: of the run.
        checkpoint: what a resumed run goes on from; None at the start.
        console: quiet on all processes but the first, from `run` on.
        fabric: device, precision and processes, from `run` on.

    Raises InputError, when entered, where the folder holds a run that was not to be resumed, one that cannot be, or
    one that another process trains; and when left, where the disk did not take a file of the run.
    """

    fabric: Any
    checkpoint: Checkpoint | None

    def __init__(
        self,
        config: JobConfig,
        *,
        resume: bool = False,
        console: Console | None = None,
        should_stop: ShouldStop | None = None,
        devices: int = 1,
    ) -> None:
        self.config, self.folder = config, config.run_folder()
        self.console = console or Console()
        self._resume, self._devices = resume, devices
        self._should_stop = should_stop or never
        self._log: RunLog | None = None
        self._held = ExitStack()

    def __enter__(self) -> Session:
        with ExitStack() as stack:
            # The other processes of a run are let in by the first.
            if self._devices == 1 or launched_rank() == 0:
                stack.enter_context(claimed(self.folder))
            self._generation = open_run(self.folder, resume=self._resume)
            self.checkpoint = self._generation.checkpoint if self._generation else None
            self._held = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._held.__exit__(*raised)

    def check_continues(
        self,
        free_to_change: Mapping[str, Sequence[str]],
        *,
        files: Mapping[str, str] | None = None,
        contents: Contents | None = None,
        what: str = "volumes",
    ) -> None:
        """Raise InputError where a resumed run has other settings, or other `files` or `contents` if these are given.

        A job that gives them writes them into its checkpoints, as `files` and as `contents`.
        """
        if self.checkpoint is None:
            return
        check_settings_stay(self.folder, self.checkpoint, self.config.model_dump(mode="json"), free_to_change)
        if files is not None:
            check_files_stay(self.folder, self.checkpoint, files, what)
        if contents is not None:
            check_contents_stay(self.folder, self.checkpoint, contents)

    def run(
        self, train: Callable[[Session], bool], *, device: str, precision: Precision, deterministic: bool = False
    ) -> bool:
        """Start a process for each of the devices, let the job `train` in each, and end them together.

        Returns what `train` returns. Raises InputError where the device is not there or cannot do the precision, and,
        of a `deterministic` run, for an operation whose results do not repeat bit for bit.
        """
        with deterministic_algorithms(enabled=deterministic):
            return self._run(train, device=device, precision=precision)

    def _run(self, train: Callable[[Session], bool], *, device: str, precision: Precision) -> bool:
        # Of a rank whose data worker hangs that is to be told, and not by all others that it does not answer.
        timeout_s = 2 * self.config.run.timeout_s
        self.fabric = make_fabric(device=device, precision=precision, devices=self._devices, timeout_s=timeout_s)
        if not self.is_first:
            self.console = Console(quiet=True)
        try:
            complete = train(self)
        except BaseException as error:
            told = isinstance(error, ProcessFault) and is_told_by_first_rank(self.fabric)
            end_ranks(self.fabric, hang=isinstance(error, ProcessFault))
            if told:
                raise SystemExit(2) from None
            raise
        # The wrapped model is gone with the frame above: it must not outlive the process group.
        close_runtime(self.fabric)
        return complete

    def setup(
        self,
        module: nn.Module,
        groups: Sequence[Mapping[str, Any]],
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        offload: bool = False,
    ) -> tuple[Any, torch.optim.Optimizer]:
        """Return `module` as it trains on the session's devices, and AdamW over `groups` of its parameters.

        With `offload` its moments lie in the CPU's memory.
        """
        kind = OffloadedAdamW if offload else torch.optim.AdamW
        optimizer = kind([dict(group) for group in groups], lr=learning_rate, betas=betas)
        model, optimizer = self.fabric.setup(module, optimizer)
        return model, optimizer

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.fabric.is_global_zero)

    @property
    def records(self) -> Sequence[Record]:
        """Those of all steps so far."""
        return [] if self._log is None else self._log.records

    @property
    def steps(self) -> int:
        """The optimiser steps taken so far."""
        return self.records[-1]["step"] + 1 if self.records else 0

    def train(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        batches: Callable[[int, int], Iterable[TrainingBatch]],
        learning_rate: Callable[[int], float],
        *,
        settings: LoopSettings,
        shown: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
        after_step: Callable[[], None] = lambda: None,
        probe: Probe = lambda step: {},
        score: Score = lambda row: float(row["loss"]),
        given_up: ShouldStop = never,
    ) -> bool:
        """Train to the end; False where the run was stopped before, and can be resumed.

        Args:
            model, optimizer: as `setup` returned them.
            batches: of a range of steps, in order.
            shown: names of an epoch's row that are printed beside its losses.
            metadata: what checkpoints hold beside the configuration; see `Trainer` for the other functions.
            given_up: whether training has reached what it can, and ends here as a complete run.

        Raises DivergedError where the loss stops being finite.
        """
        described = {"config": self.config.model_dump(mode="json"), "voxelwave": __version__, **(metadata or {})}
        trainer = Trainer(
            *(self.fabric, model, optimizer, objective, learning_rate, self.folder, described),
            settings=settings,
            after_step=after_step,
            probe=probe,
            score=score,
        )
        if self._generation is not None:
            trainer.restore(*self._generation)
            self.console.say(f"resuming {self.folder} at step {trainer.state.step} of {settings.total_steps}")
        if self.is_first:
            write_config(self.folder, self.config)
        self._log = RunLog(
            self.folder,
            start_step=trainer.state.step,
            total_steps=settings.total_steps,
            checksum=None if self.checkpoint is None else self.checkpoint.get("metrics_crc32"),
            console=self.console,
            shown=shown,
            tensorboard=self.config.run.tensorboard,
            writes=self.is_first,
        )
        with stop_on_signal() as signalled, self._log as log:
            if self.checkpoint is None:
                trainer.save(log)  # whenever the run dies, there is something to go on from
            stream = batches(trainer.state.step, settings.total_steps)
            complete = given_up() or trainer.run(
                stream, log, lambda: signalled.heard() or self._should_stop() or given_up()
            )
            if not (complete := complete or given_up()):
                log.say(f"stopped at step {trainer.state.step} of {settings.total_steps}; go on with --resume")
        return complete
