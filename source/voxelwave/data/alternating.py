"""Which volumes every step sees: modalities take turns, and the schedule can be entered at any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.utils.data import Sampler

from voxelwave.ops.seeding import torch_generator


@dataclass(frozen=True)
class Draw:
    """One sample to make: volume `index` of `modality`, augmented with the generator of `key`."""

    modality: str
    index: int
    key: tuple[int | str, ...]


class AlternatingSchedule:
    """Step s uses modality s mod M, in the order given, on every rank alike.

    The volumes of a modality form an endless stream: one random order of all of them after the other. Its
    n-th micro-batch takes the next `batch_size * world_size` entries, each rank its own slice of them. So
    batches are always full, every volume comes once before any comes again, and the shorter set simply starts
    over.

    Args:
        num_volumes: by modality, in the order in which they take turns.
        batch_size: by modality, on one rank.
        accumulate: micro-batches a step.
    """

    def __init__(
        self,
        num_volumes: Mapping[str, int],
        batch_size: Mapping[str, int],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
    ) -> None:
        for name, number in num_volumes.items():
            if number < 1 or batch_size[name] < 1:
                raise ValueError(
                    f"modality '{name}' needs volumes and a batch size of at least 1, "
                    f"got {number} and {batch_size[name]}"
                )
        if not num_volumes or accumulate < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "a schedule needs a modality, accumulate >= 1 and 0 <= rank < world_size, got "
                f"{list(num_volumes)}, {accumulate}, {rank} and {world_size}"
            )
        self.num_volumes, self.batch_size = dict(num_volumes), dict(batch_size)
        self.seed, self.rank, self.world_size, self.accumulate = seed, rank, world_size, accumulate
        self._modalities = list(num_volumes)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every volume of every modality was seen at least once."""
        per_step = {name: self.batch_size[name] * self.world_size * self.accumulate for name in self._modalities}
        return len(self._modalities) * max(-(-self.num_volumes[name] // per_step[name]) for name in self._modalities)

    def modality(self, step: int) -> str:
        """Return the modality of `step`."""
        return self._modalities[step % len(self._modalities)]

    def draw(self, step: int, micro: int = 0) -> list[Draw]:
        """Return the samples of micro-batch `micro` of `step` on this rank."""
        name = self.modality(step)
        size, total = self.batch_size[name], self.num_volumes[name]
        number = step // len(self._modalities) * self.accumulate + micro
        first = (number * self.world_size + self.rank) * size
        draws = []
        for entry in range(first, first + size):
            sweep, position = divmod(entry, total)
            index = _order(self.seed, name, sweep, total)[position]
            draws.append(Draw(name, index, (self.seed, "sample", name, sweep, self.rank, position)))
        return draws

    def batches(self, start_step: int, end_step: int) -> AlternatingBatches:
        """Return the batch sampler of the steps from `start_step` up to, not including, `end_step`."""
        return AlternatingBatches(self, start_step, end_step)


class AlternatingBatches(Sampler[list[Draw]]):
    """The draws of a range of steps, one list a micro-batch."""

    def __init__(self, schedule: AlternatingSchedule, start_step: int, end_step: int) -> None:
        self._schedule, self._steps = schedule, range(start_step, end_step)

    def __len__(self) -> int:
        return len(self._steps) * self._schedule.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self._steps:
            for micro in range(self._schedule.accumulate):
                yield self._schedule.draw(step, micro)


@lru_cache(maxsize=16)
def _order(seed: int, modality: str, sweep: int, size: int) -> tuple[int, ...]:
    generator = torch_generator(seed, "order", modality, sweep)
    return tuple(torch.randperm(size, generator=generator).tolist())
