"""The cases of a fold, held in memory, and the batch of every step."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from voxelwave.contracts import StepOutput
from voxelwave.data.augmentations import SpatialAugmentation
from voxelwave.data.batches.alternating import AlternatingSchedule
from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.splits import Split
from voxelwave.data.reading.volume import Affine
from voxelwave.errors import DivergedError, InputError
from voxelwave.jobs.common.console import tracked
from voxelwave.jobs.common.processes import checked_workers, run_all
from voxelwave.ops.cores import usable_memory
from voxelwave.ops.files import MARK_DIGITS, content_mark
from voxelwave.ops.loggers import logger
from voxelwave.ops.seeding import key_to_seed, number_and_checksum, torch_generator
from voxelwave.registry import AUGMENTATIONS

LISTED = 10  # cases that cannot be used
TELLING = 8  # cases, of which is told how much memory all of them take
WORTH_PROCESSES_S = 60.0  # of reading that is left
FEWER = "a smaller data.crop_size of a classification or a coarser data.spacing_mm takes less"


@dataclass(frozen=True)
class Held:
    """A case in memory: its scaled image, with labels where the task has them, and the way from voxels to mm."""

    case: Case
    content: Any
    affine: Affine

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes as an array: of a tensor torch would use /dev/shm, of which containers have little.
        content = self.content.numpy() if isinstance(self.content, Tensor) else self.content
        return _held, (self.case, content, self.affine)


def _held(case: Case, content: Any, affine: Affine) -> Held:
    return Held(case, torch.from_numpy(content) if isinstance(content, ndarray) else content, affine)


def checked_finite(logits: Tensor, case: Case) -> Tensor:
    """Return logits; raises DivergedError where one is not finite, as after an update that was too large."""
    if not logits.isfinite().all():
        raise DivergedError(
            f"what the model predicts for {case.image} is not finite; lower training.learning_rate, and start again"
        )
    return logits


class LabelledBatch(NamedTuple):
    """Samples of one modality and what is to be predicted of them."""

    volume: Float[Tensor, "batch channel depth height width"]
    target: Tensor
    modality: str
    files: list[str]


class Task(ABC):
    """What segmentation and classification do, each in its own way.

    Attributes:
        score: the name of what validation maximises.
        reading: what a held case follows from, beside its files.
    """

    score: str
    reading: str

    @abstractmethod
    def accept(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases that can be used; raises InputError for a list that does not fit the task."""

    def check_split(self, split: Split) -> None:
        """Raise InputError where a part of the split cannot serve, by what the list says."""
        return

    @abstractmethod
    def hold(self, case: Case) -> Held:
        """Read a case; raises InputError, naming the file, where it cannot be used."""

    def check_held(self, train: Sequence[Held], validation: Sequence[Held]) -> None:
        """Raise InputError where cases cannot serve to train or to validate on, by what their files hold."""
        return

    @abstractmethod
    def sample(self, held: Held, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a volume to train on and its target."""

    def moved(self, target: Tensor, augmentation: SpatialAugmentation, generator: torch.Generator) -> Tensor:
        """Return the targets of a batch whose voxels `augmentation` moves: unless they have a place, as they are."""
        return target

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> StepOutput:
        """Return what is minimised."""

    @abstractmethod
    def validate(self, model: nn.Module, cases: Sequence[Held]) -> dict[str, float]:
        """Return scores by name, `score` among them; each name begins with `validation_`."""

    @abstractmethod
    def evaluate(self, model: nn.Module, cases: Mapping[str, Sequence[Held]], folder: Path) -> dict[str, Any]:
        """Predict the cases of each part, write predictions and tables, and return the summary of each part."""

    @abstractmethod
    def draw(self, model: nn.Module, cases: Sequence[Held], path: Path) -> None:
        """Draw what is predicted of some cases."""


class FoldData:
    """The cases of a split, read once, and batches as a function of the step.

    Args:
        kept: what was read before; other runs with the same cases may share it.
        augment: settings of augmentations by modality, in their order.

    Raises InputError where cases cannot be used, when all are read.
    """

    def __init__(
        self,
        task: Task,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        augment: Mapping[str, Mapping[str, Mapping[str, Any]]],
        kept: MutableMapping[Any, Held],
    ) -> None:
        self._task, self._seed = task, seed

        def held(cases: Sequence[Case]) -> list[Held]:
            keys = [(task.reading, case) for case in map(_identity, cases)]
            todo = [(key, case) for key, case in zip(keys, cases, strict=True) if key not in kept]
            read = read_cases(task, [case for _, case in todo])
            for number, one in tracked(read, "read cases", total=len(todo)):
                if isinstance(one, Held):
                    kept[todo[number][0]] = one
                    if len(kept) == TELLING:
                        _warn_of_memory(list(kept.values()), sum(map(len, split)))
                else:
                    unusable[todo[number][1].name] = one
            if unusable:
                return []
            return [Held(case, kept[key].content, kept[key].affine) for key, case in zip(keys, cases, strict=True)]

        unusable = dict[str, str]()
        self.train, self.validation, self.test = (held(cases) for cases in split)
        if unusable:
            first, *others = (unusable[case.name] for cases in split for case in cases if case.name in unusable)
            more = f" (and {len(others)} more: {'; '.join(others[: LISTED - 1])})" if others else ""
            raise InputError(f"{first}{more}")
        self._by_modality: dict[str, list[Held]] = {}
        for one in self.train:
            self._by_modality.setdefault(one.case.modality, []).append(one)
        self._schedule = AlternatingSchedule(
            {name: [len(of)] for name, of in self._by_modality.items()},
            dict.fromkeys(self._by_modality, batch_size),
            seed=seed,
        )
        self._augment = {
            name: {step: AUGMENTATIONS.build(step, **settings) for step, settings in augment[name].items()}
            for name in self._by_modality
        }

    def batches(self, start_step: int, end_step: int) -> Iterator[LabelledBatch]:
        """Yield the batches of a range of steps, in order."""
        for step in range(start_step, end_step):
            draws = self._schedule.draw(step)
            chosen = [self._by_modality[draw.modality][draw.index] for draw in draws]
            samples = [
                self._task.sample(held, torch_generator(self._seed, "sample", step, position))
                for position, held in enumerate(chosen)
            ]
            yield LabelledBatch(
                torch.stack([volume for volume, _ in samples]),
                torch.stack([target for _, target in samples]),
                draws[0].modality,
                [str(held.case.image) for held in chosen],
            )

    def augmented(self, batch: LabelledBatch, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the volumes and targets of the batch of `step` on `device`, augmented there."""
        volume, target = batch.volume.to(device), batch.target.to(device)
        for name, augmentation in self._augment[batch.modality].items():
            volume = augmentation(volume, torch_generator(self._seed, "augment", step, name))
            if isinstance(augmentation, SpatialAugmentation):
                generator = torch_generator(self._seed, "augment", step, name)
                target = self._task.moved(target, augmentation, generator)
        return volume, target

    def fingerprint(self) -> dict[str, str]:
        """The number of cases of each part and a checksum of who they are, in order."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        named = {part: [f"{one.case.name} {one.case.subject}" for one in of] for part, of in parts.items()}
        return {part: number_and_checksum(of) for part, of in named.items()}

    @cached_property
    def contents(self) -> dict[str, dict[str, str]]:
        """A mark of the image, the label map and the targets of each case of each part, in order."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {part: {str(one.case.image): _mark(one.case) for one in of} for part, of in parts.items()}


def _warn_of_memory(read: Sequence[Held], number: int) -> None:
    """Say it in time where `number` cases like those that were read take more memory than there is for anything."""
    needed, usable = sum(one.content.nbytes for one in read) / len(read) * number, usable_memory()
    if needed > usable:
        logger.warning(
            "the %d cases are held in memory and take about %.3g GB of it, and there are %.3g GB: %s",
            number,
            needed / 1e9,
            usable / 1e9,
            FEWER,
        )


def read_cases(task: Task, cases: Sequence[Case]) -> Iterator[tuple[int, Held | str]]:
    """Yield the number of each case, and what is held of it or why it cannot be used.

    The first are read here. Once the others would take longer than processes take to begin, those read them, and they
    come as they are done; raises ProcessFault where one of the processes was killed.
    """
    jobs, began = list(enumerate(cases)), time.monotonic()
    for number, case in jobs:
        yield _read(task, (number, case))
        left = jobs[number + 1 :]
        if (time.monotonic() - began) / (number + 1) * len(left) > WORTH_PROCESSES_S:
            how = partial(_read, task)
            yield from run_all(how, left, workers=checked_workers(None), name=_name, for_memory=FEWER, kept="")
            return


def _read(task: Task, job: tuple[int, Case]) -> tuple[int, Held | str]:
    number, case = job
    try:
        return number, task.hold(case)
    except InputError as error:
        return number, str(error)


def _name(job: tuple[int, Case]) -> str:
    return str(job[1].image)


def _mark(case: Case) -> str:
    marks = [content_mark(file) for file in (case.image, case.label) if file is not None]
    return f"{key_to_seed(*marks, *(f'{name} {value}' for name, value in case.targets.items())):016x}"[-MARK_DIGITS:]


def _identity(case: Case) -> tuple[Any, ...]:
    """What tells the files of a case from others, and from themselves at another time."""
    files = [file for file in (case.image, case.label) if file is not None]
    return (case.modality, *((str(file.absolute()), file.stat().st_mtime_ns) for file in files))
