"""Which volumes every step sees: modalities take turns, and the schedule can be entered at any step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import Sampler

from voxelwave.ops.seeding import torch_generator


@dataclass(frozen=True)
class Draw:
    """One sample to make: volume `index` of `modality`, cut with the generator that `key` seeds."""

    modality: str
    index: int
    key: tuple[int | str, ...]


class AlternatingSchedule:
    """Modalities take turns by steps, the same on every rank, and sources take turns within a modality.

    Steps run through a *cycle* that has `steps[modality]` steps of each modality, spread evenly over it: two of
    MRI and one of CT are mri, ct, mri.

    The volumes of a source form an endless stream: one random order of all of them after the other, so that each
    comes once before any comes again. A *sweep* of a modality with N volumes is N entries. Every source fills its
    share of a sweep, which is the same in all sweeps, with the next entries of its stream; the sources take turns at
    random. At temperature 1 a sweep holds every volume exactly once. A higher temperature shows the volumes of small
    sources more often than those of large ones. A modality with few volumes begins its next sweep earlier.

    An entry of a sweep is `crops_per_volume` samples in a row. The n-th micro-batch of a modality takes the next
    `batch_size * world_size` samples, and rank r the r-th `batch_size` of them, so batches are always full. Where
    `batch_size` is a multiple of `crops_per_volume`, all crops of a volume are in one batch of one rank; elsewhere
    they may reach into the next rank's batch, or the next micro-batch.

    Args:
        num_volumes: of every source, by modality, in the order in which they take turns. A draw's index counts
            through the sources of its modality.
        batch_size: samples by modality, on one rank.
        accumulate: micro-batches a step.
        steps: of a cycle, by modality; one that is left out has 1.
        temperature: T >= 1, `math.inf` included. The share of a source with n volumes is in proportion to
            n^(1/T): 1 shows every volume as often as any other, infinity every source (Conneau and Lample, 2019,
            "Cross-lingual language model pretraining", section 3.1, with alpha = 1/T).
        crops_per_volume: samples of a volume in a row, each with a key of its own.

    Raises ValueError where a number is outside its range.
    """

    def __init__(
        self,
        num_volumes: Mapping[str, Sequence[int]],
        batch_size: Mapping[str, int],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        steps: Mapping[str, int] | None = None,
        temperature: float = 1.0,
        crops_per_volume: int = 1,
    ) -> None:
        for name, sizes in num_volumes.items():
            if not sizes or min(sizes) < 1 or batch_size[name] < 1:
                raise ValueError(
                    f"modality '{name}' needs volumes in each of its sources and a batch size of at least 1, "
                    f"got {list(sizes)} and {batch_size[name]}: leave out what is empty"
                )
        if not num_volumes or accumulate < 1 or not 0 <= rank < world_size:
            raise ValueError(
                "a schedule needs a modality, accumulate >= 1 and 0 <= rank < world_size, got "
                f"{list(num_volumes)}, {accumulate}, {rank} and {world_size}"
            )
        for name, number in (steps or {}).items():
            if number < 1:
                raise ValueError(
                    f"a cycle needs at least 1 step of '{name}', got {number}: give 1 or more, "
                    "or leave the modality's volumes out"
                )
        if not temperature >= 1:
            raise ValueError(
                f"temperature must be at least 1, got {temperature}: 1 shows volumes equally often, inf sources"
            )
        if crops_per_volume < 1:
            raise ValueError(f"crops_per_volume must be at least 1, got {crops_per_volume}: 1 is one sample a volume")
        self.num_volumes = {name: tuple(sizes) for name, sizes in num_volumes.items()}
        self.batch_size, self.steps = dict(batch_size), {name: (steps or {}).get(name, 1) for name in num_volumes}
        self.seed, self.rank, self.world_size, self.accumulate = seed, rank, world_size, accumulate
        self.crops_per_volume = crops_per_volume
        self._shares = {name: _shares(sizes, temperature) for name, sizes in self.num_volumes.items()}
        self._cycle = _spread(self.steps)

    @property
    def steps_per_epoch(self) -> int:
        """The steps, in whole cycles, in which every modality finishes a sweep.

        At temperature 1 every volume was then seen at least once, in all its crops.
        """
        cycles = 0
        for name, sizes in self.num_volumes.items():
            per_cycle = self.batch_size[name] * self.world_size * self.accumulate * self.steps[name]
            cycles = max(cycles, -(-sum(sizes) * self.crops_per_volume // per_cycle))
        return cycles * len(self._cycle)

    def modality(self, step: int) -> str:
        """Return the modality of `step`."""
        return self._cycle[step % len(self._cycle)][0]

    def draw(self, step: int, micro: int = 0) -> list[Draw]:
        """Return the samples of micro-batch `micro` of `step` on this rank."""
        cycle, place = divmod(step, len(self._cycle))
        name, turn = self._cycle[place]
        sizes, shares, size = self.num_volumes[name], self._shares[name], self.batch_size[name]
        number = (cycle * self.steps[name] + turn) * self.accumulate + micro
        first = (number * self.world_size + self.rank) * size
        draws = []
        for sample in range(first, first + size):
            entry, crop = divmod(sample, self.crops_per_volume)
            sweep, position = divmod(entry, sum(sizes))
            index = _sweep(self.seed, name, sizes, shares, sweep)[position]
            draws.append(Draw(name, index, (self.seed, "sample", name, sweep, self.rank, position, crop)))
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


def _spread(steps: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the modality of each step of a cycle, and how many of the modality's steps come before it.

    The j-th of k steps belongs into the middle of the j-th of k parts of the cycle; of equals, the modality given
    first goes first. This is the order in which Webster's method hands out seats.
    """
    turns = [(name, turn) for name, number in steps.items() for turn in range(number)]
    return sorted(turns, key=lambda place: Fraction(2 * place[1] + 1, steps[place[0]]))


def _shares(sizes: Sequence[int], temperature: float) -> tuple[int, ...]:
    """Return how many entries of a sweep each source has, by largest remainder; they add up to sum(sizes)."""
    weights = [float(size ** (1 / temperature)) for size in sizes]
    quotas = [sum(sizes) * weight / sum(weights) for weight in weights]
    # No share is 0: the quota of the smallest source is at least its size, since T >= 1 only levels the weights.
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(sizes)), key=lambda source: shares[source] - quotas[source])
    for source in by_remainder[: sum(sizes) - sum(shares)]:
        shares[source] += 1
    return tuple(shares)


@lru_cache(maxsize=16)
def _sweep(seed: int, modality: str, sizes: tuple[int, ...], shares: tuple[int, ...], sweep: int) -> tuple[int, ...]:
    """Return the volumes of a sweep in their order, counted through the sources."""
    # 1. Who comes when: as many turns as a source has entries, shuffled as a whole.
    turns = torch.repeat_interleave(torch.tensor(shares))
    turns = turns[torch.randperm(len(turns), generator=torch_generator(seed, "turns", modality, sweep))]
    # 2. A source's turns show its stream in its own order: shuffling volumes instead would mix two of its orders.
    volumes = torch.empty_like(turns)
    for source, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        stream = _stream((seed, "order", modality, source), size, first=sweep * share, number=share)
        volumes[turns == source] = sum(sizes[:source]) + stream
    return tuple(volumes.tolist())


def _stream(key: tuple[int | str, ...], size: int, *, first: int, number: int) -> Int64[Tensor, " number"]:
    """Return `number` entries, from position `first` on, of random orders of `size` volumes, one after the other."""
    orders = range(first // size, (first + number - 1) // size + 1)
    stream = torch.cat([torch.randperm(size, generator=torch_generator(*key, order)) for order in orders])
    return stream[first - orders.start * size :][:number]
