"""The training loop: batches in, optimiser steps, records and checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import BEST, LAST, PREVIOUS, save_checkpoint
from voxelwave.engine.run_log import SPEED, WAITED, Record, RunLog
from voxelwave.engine.runtime import anyone, ends_in_order, lost_rank, mean_over_ranks
from voxelwave.engine.signals import Stopped
from voxelwave.errors import DivergedError, InputError, ProcessFault
from voxelwave.ops.texts import one_line


@runtime_checkable
class TrainingBatch(Protocol):
    """What the loop knows of a batch; all else is between the job's loader and its objective."""

    @property
    def modality(self) -> str:
        """The name of what all its samples are."""
        ...

    @property
    def files(self) -> list[str]:
        """Where each sample comes from."""
        ...


Objective = Callable[[Any, int], StepOutput]
Probe = Callable[[int], dict[str, float]]
Score = Callable[[Record], float]


@dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to do what, in optimiser steps; `checkpoint_every_epochs=0` writes none.

    With `checkpoint_optimizer` the checkpoints of epochs hold the optimiser's state, too: about twice the weights.
    `samples` names what a batch holds: records say how many `<samples>_per_second` were trained on.
    """

    total_steps: int
    steps_per_epoch: int
    accumulate: int = 1
    clip_norm: float = 1.0
    checkpoint_every_steps: int = 500
    checkpoint_every_epochs: int = 1
    probe_every_steps: int = 50
    checkpoint_optimizer: bool = False
    samples: str = "volumes"


@dataclass
class LoopState:
    """Where a run stands: optimiser steps taken and the lowest score of an epoch."""

    step: int = 0
    best_loss: float = math.inf


class Trainer:
    """Trains an objective. `fabric`, `model` and `optimizer` come set up; the learning rate is a function of the step.

    Everything that a run needs to go on is in `last.pth`: weights, optimiser, precision state, step, best loss. The
    data and the masks are functions of the step, so that nothing else has to be remembered.

    `objective` is called with a batch and its number since the start of the run, `probe` with the number of a step
    that was taken, for what else that step's record is to hold. `score` says of an epoch's row how good its weights
    are, lower being better; the best are `best_model.pth`. The rate of a group of parameters is that of the step times
    its `lr_scale`, where it has one (as timm's groups do).
    """

    def __init__(
        self,
        fabric: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        learning_rate: Callable[[int], float],
        folder: Path,
        metadata: dict[str, Any],
        *,
        settings: LoopSettings,
        after_step: Callable[[], None] = lambda: None,
        probe: Probe = lambda step: {},
        score: Score = lambda row: float(row["loss"]),
    ) -> None:
        self.fabric = fabric
        self.model = model
        self.optimizer = optimizer
        self.objective = objective
        self.learning_rate = learning_rate
        self.folder = folder
        self.metadata = metadata
        self.settings = settings
        self.after_step = after_step
        self.probe = probe
        self.score = score
        self.state = LoopState()
        self._saved: int | None = None  # the step of `last.pth`, where the run can go on from it
        # Whether weights, optimiser and records are those of `state.step` steps.
        self._whole = True

    def run(self, batches: Iterable[TrainingBatch], log: RunLog, should_stop: Callable[[], bool]) -> bool:
        """Train from `state.step` on; True where the run came to its end, False where it was asked to stop.

        What ends it in the midst of a step, but for a loss that is not finite, leaves the state after the last whole
        one in `last.pth`. Within an update of the weights, or before its record is written, there is none, and the
        checkpoint before it is kept.

        Raises ProcessFault where a process that it needs was killed, or hangs.
        """
        stream = iter(batches)
        try:
            return self._run(stream, log, should_stop)
        except DivergedError:
            raise
        except InputError as error:
            if not (self.state.step or isinstance(error, ProcessFault)):
                raise
            raise type(error)(f"{error}; {self._kept(log)}") from None
        except Exception as error:
            if (fault := lost_rank(self.fabric, error)) is not None:
                raise ProcessFault(f"{fault}; {self._kept(log)}") from None
            error.add_note(self._kept(log))
            raise
        except Stopped as stopped:
            if not self._whole:
                stopped.args = (f"{stopped}; {self._kept(log)}",)
                raise
            ends_in_order(self.fabric)
            self.save(log)
            return False
        finally:
            if isinstance(stream, Generator):
                stream.close()

    def _kept(self, log: RunLog) -> str:
        """Save the state where it is whole, and say from where the run goes on."""
        last = self.folder / LAST
        if self._whole and self.state.step and self.fabric.is_global_zero:
            try:
                self.save(log)
                return f"saved at step {self.state.step}, go on with --resume"
            except (OSError, InputError):  # of a full disk, say, which may be what ends the run
                pass
        return "go on with --resume from the checkpoint before" if last.exists() else "nothing was saved yet"

    def _run(self, stream: Iterator[TrainingBatch], log: RunLog, should_stop: Callable[[], bool]) -> bool:
        settings, state = self.settings, self.state
        # A run that was stopped within an epoch may be told to end there.
        if 0 < settings.total_steps <= state.step and not log.has_epoch_until(state.step):
            self._end_epoch(math.ceil(state.step / settings.steps_per_epoch), log)
        while state.step < settings.total_steps:
            began = time.perf_counter()
            micro_batches = [next(stream) for _ in range(settings.accumulate)]
            waited = time.perf_counter() - began
            taken = self._step(micro_batches, should_stop)
            if taken is None:
                self.save(log)
                return False
            logs, gradient_norm = taken
            duration = time.perf_counter() - began
            if state.step % settings.probe_every_steps == 0 or state.step == settings.total_steps - 1:
                logs |= self.probe(state.step)
            samples = self.fabric.world_size * sum(len(batch.files) for batch in micro_batches)
            epoch = state.step // settings.steps_per_epoch + 1
            log.step(
                {
                    "step": state.step,
                    "epoch": epoch,
                    "modality": micro_batches[0].modality,
                    **logs,
                    "learning_rate": self.learning_rate(state.step),
                    "grad_norm": gradient_norm,
                    f"{settings.samples}{SPEED}": samples / duration,
                    WAITED: waited,
                }
            )
            state.step += 1
            finished = state.step == settings.total_steps
            if state.step % settings.steps_per_epoch == 0 or finished:
                self._end_epoch(epoch, log)
                self._whole = True
            else:
                self._whole = True
                if state.step % settings.checkpoint_every_steps == 0:
                    self.save(log)
            if anyone(self.fabric, should_stop()) and not finished:
                self.save(log)
                return False
        return True

    def _step(
        self, micro_batches: Sequence[TrainingBatch], should_stop: Callable[[], bool]
    ) -> tuple[dict[str, float], float] | None:
        """Take one optimiser step; return the logs, averaged over micro-batches, and the gradient's norm.

        Asked to stop between two micro-batches, it takes none and returns None: the run goes on with the whole step.
        """
        state, share = self.state, 1 / len(micro_batches)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(state.step) * group.get("lr_scale", 1.0)
        logs: dict[str, float] = {}
        for micro, batch in enumerate(micro_batches):
            last = micro == len(micro_batches) - 1
            if micro and anyone(self.fabric, should_stop()):
                return None
            with self.fabric.no_backward_sync(self.model, enabled=not last):
                output = self.objective(batch, state.step * len(micro_batches) + micro)
                self._check_finite(float(output.loss.detach()), "loss", micro_batches)
                self.fabric.backward(output.loss * share)
            for name, value in output.logs.items():
                logs[name] = logs.get(name, 0.0) + float(value) * share
        norm = float(
            self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
            )
        )
        # In fp16 an infinite gradient is the scaler's business: it skips the step and lowers the scale.
        if getattr(self.fabric.strategy.precision, "scaler", None) is None:
            self._check_finite(norm, "gradient", micro_batches)
        logs = mean_over_ranks(self.fabric, logs)
        self._whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.after_step()
        return logs, norm

    def _check_finite(self, value: float, what: str, micro_batches: Sequence[TrainingBatch]) -> None:
        if not math.isfinite(value):
            files = ", ".join(file for batch in micro_batches for file in batch.files)
            last = self.folder / LAST
            again = f"go on from {last} with --resume" if last.exists() else "start again"
            raise DivergedError(
                f"the {what} is {value} at step {self.state.step} on {files}; look at these (files: with `voxelwave "
                f"inspect`), or lower training.learning_rate, then {again}"
            )

    def _end_epoch(self, epoch: int, log: RunLog) -> None:
        row = log.epoch()
        last = self.state.step >= self.settings.total_steps
        if self.fabric.is_global_zero:
            place = {"step": self.state.step, "epoch": epoch, "loss": float(row["loss"])}
            weights = {"model": self._model_state(), **place, **self.metadata}
            if self.settings.checkpoint_optimizer:
                weights["optimizer"] = self.optimizer.state_dict()
            every = self.settings.checkpoint_every_epochs
            if every and (epoch % every == 0 or last):
                save_checkpoint(self.folder / f"checkpoint_epoch_{epoch}.pth", weights)
            if (score := self.score(row)) < self.state.best_loss:
                self.state.best_loss = score
                save_checkpoint(self.folder / BEST, weights)
        self.save(log)

    def _model_state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.model.state_dict()
        return state

    def save(self, log: RunLog) -> None:
        """Write `last.pth`, unless that is of this step; the one before becomes `last.previous.pth`."""
        log.flush()
        if self.fabric.is_global_zero and self._saved != self.state.step:
            state = {
                "model": self._model_state(),
                "optimizer": self.optimizer.state_dict(),
                "precision": self.fabric.strategy.precision.state_dict(),
                "step": self.state.step,
                "best_loss": self.state.best_loss,
                "metrics_crc32": log.checksum,
                **self.metadata,
            }
            # One that the run cannot go on from must not take the place of the one that it went on from.
            previous = None if self._saved is None else self.folder / PREVIOUS
            save_checkpoint(self.folder / LAST, state, previous=previous)
            self._saved = self.state.step

    def restore(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Go on from what `save` wrote to `path`; raises InputError where it was another model's."""
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            self.fabric.strategy.precision.load_state_dict(checkpoint["precision"])
            self.state = LoopState(step=checkpoint["step"], best_loss=checkpoint["best_loss"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{path} does not fit this run: {one_line(repr(error))}") from None
        self._saved = self.state.step if path.name == LAST else None
