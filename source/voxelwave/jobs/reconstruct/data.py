"""The slice of every micro-batch, the same whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex64, Float, Float32
from torch import Tensor
from torch.utils.data import Dataset

from voxelwave.data.batches.watched import WORKER_TIMEOUT_S, WatchedLoader
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.slices import KspaceItem, KspaceSlices
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.config import ReconstructionConfig, ReconstructionData
from voxelwave.jobs.reconstruct.files import find_kspace, open_kspace
from voxelwave.jobs.reconstruct.preparation import Preparation, check_target_fits
from voxelwave.jobs.reconstruct.schedule import Block, block_at, blocks_of
from voxelwave.ops.memory import one_thread
from voxelwave.ops.seeding import torch_generator


class ReconstructionBatch(NamedTuple):
    """One slice between its neighbours.

    Attributes:
        kspace: 0 where it is not sampled.
        target: the image to be reconstructed, the centre of that of the k-space; None where there is none.
        data_range: the largest value of the target, as its score takes it.
        modality: the anatomy, "kspace" where it is not said.
        files: the name of the file, with the number of the slice.
    """

    kspace: Complex64[Tensor, "1 slice coil height width"]
    sampled: Bool[Tensor, "1 height width"]
    target: Float32[Tensor, "1 rows columns"] | None
    data_range: Float[Tensor, "1"]
    modality: str
    files: list[str]

    def to(self, device: torch.device) -> ReconstructionBatch:
        """Return the batch on a device."""
        target = None if self.target is None else self.target.to(device)
        return self._replace(
            kspace=self.kspace.to(device),
            sampled=self.sampled.to(device),
            target=target,
            data_range=self.data_range.to(device),
        )


class ReconstructionFiles(NamedTuple):
    """The files of training, and those of validation."""

    training: list[KspaceFile]
    validation: list[KspaceFile]

    @property
    def named(self) -> dict[str, list[Path]]:
        """The places of both."""
        return {name: [file.path for file in files] for name, files in zip(self._fields, self, strict=True) if files}


def find_files(data: ReconstructionData, *, seed: int, console: Console) -> ReconstructionFiles:
    """Return the files that `data` names; a share of them for validation is drawn by `seed`.

    Raises InputError where there are none, or for one that cannot be used.
    """
    paths, held_out = find_kspace(data.files), []
    if isinstance(data.validation, str):
        held_out = find_kspace(data.validation)
        paths = [path for path in paths if path not in set(held_out)]
    elif data.validation:
        count = min(max(round(data.validation * len(paths)), 1), len(paths) - 1)
        drawn = torch.randperm(len(paths), generator=torch_generator(seed, "validation"))[:count].tolist()
        held_out = [paths[index] for index in sorted(drawn)]
        paths = [path for path in paths if path not in set(held_out)]
    training = open_kspace(paths, skip_unusable=data.skip_unusable, console=console)
    validation = open_kspace(held_out, skip_unusable=data.skip_unusable, console=console) if held_out else []
    for file in (*training, *validation):
        check_target_fits(file, data.readout_rows)
    return ReconstructionFiles(training, validation)


class ReconstructionSteps(Dataset[ReconstructionBatch]):
    """Every micro-batch by its number. Each epoch has an order of its own, and leaves out what fills no step."""

    def __init__(self, config: ReconstructionConfig, files: Sequence[KspaceFile], *, neighbours: int) -> None:
        self.blocks, self._seed = blocks_of(config.blocks), config.run.seed
        self._slices = KspaceSlices(
            files, neighbours=neighbours, seed=config.run.seed, data_range=config.data.data_range
        )
        self._prepare = preparation_of(config.data)
        self._modality = config.data.anatomy or "kspace"
        self._accumulate = config.training.accumulate
        self._built: Block | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps; 0 where there are fewer slices than one takes."""
        return len(self._slices) // self._accumulate

    def epoch_of(self, step: int) -> int:
        """Return the epoch, counted from 1, that a step is of."""
        return step // self.steps_per_epoch + 1

    def __getitem__(self, micro: int) -> ReconstructionBatch:
        """Return the micro-batch with this number since the start of the training."""
        step, part = divmod(micro, self._accumulate)
        epoch = self.epoch_of(step)
        place = step % self.steps_per_epoch * self._accumulate + part
        order = torch.randperm(len(self._slices), generator=torch_generator(self._seed, "order", epoch))
        block = block_at(self.blocks, epoch)
        if block is not self._built:
            self._slices.augment, self._slices.sampling, self._built = block.augment(), block.sampling(), block
        self._slices.set_epoch(epoch)
        with one_thread():  # as in a worker process
            return batch_of(self._slices, int(order[place]), self._prepare, self._modality)

    def describe(self, micro: int) -> str:
        """Say what a worker is at."""
        return f"the slice of step {micro // self._accumulate}"

    def batches(
        self, start_step: int, end_step: int, *, num_workers: int = 0, timeout_s: float = WORKER_TIMEOUT_S
    ) -> Iterator[ReconstructionBatch]:
        """Yield the micro-batches of a range of steps, in order."""
        yield from WatchedLoader(
            self,
            self.describe,
            batch_size=None,
            sampler=range(start_step * self._accumulate, end_step * self._accumulate),
            num_workers=num_workers,
            timeout_s=timeout_s,
        )


class HeldOut(Sequence[ReconstructionBatch]):
    """The slices of validation, which never change: masks are drawn as in the last block, by the names of the files."""

    def __init__(self, config: ReconstructionConfig, files: Sequence[KspaceFile], *, neighbours: int) -> None:
        self._slices = KspaceSlices(
            files,
            blocks_of(config.blocks)[-1].sampling(),
            neighbours=neighbours,
            seed=config.run.seed,
            by_file=True,
            data_range=config.data.data_range,
        )
        self._prepare, self._modality = preparation_of(config.data), config.data.anatomy or "kspace"

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, item: int) -> ReconstructionBatch:  # type: ignore[override]  # no slices of it are taken
        """Return one slice; raises IndexError beyond the last."""
        with one_thread():
            return batch_of(self._slices, item, self._prepare, self._modality)


def preparation_of(data: ReconstructionData) -> Preparation:
    """Return what is done to all k-space of a configuration."""
    return Preparation(coils=data.coils, readout_rows=data.readout_rows)


def batch_of(slices: KspaceSlices, index: int, prepare: Preparation, modality: str) -> ReconstructionBatch:
    """Return one item as a batch."""
    file, _ = slices.place(index)
    item: KspaceItem = slices[index]
    kspace, sampled = prepare(item.kspace, item.sampled, file)
    return ReconstructionBatch(
        kspace[None],
        sampled[None],
        None if item.target is None else item.target[None],
        torch.tensor([item.data_range], dtype=torch.float64),
        modality,
        [f"{item.file}, slice {item.slice_index}"],
    )
