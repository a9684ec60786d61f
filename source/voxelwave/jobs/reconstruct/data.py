"""The slice of every micro-batch, the same whatever the number of worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from voxelwave.data.batches.watched import WORKER_TIMEOUT_S, WatchedLoader
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.slices import KspaceSlices
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.kspace_files import drawn_to_validate, find_kspace, open_kspace
from voxelwave.jobs.reconstruct.batch import ReconstructionBatch, band_of, batch_of
from voxelwave.jobs.reconstruct.config import ReconstructionConfig, ReconstructionData
from voxelwave.jobs.reconstruct.preparation import Preparation, check_target
from voxelwave.jobs.reconstruct.schedule import Block, block_at, blocks_of
from voxelwave.ops.files import real_path
from voxelwave.ops.loggers import logger
from voxelwave.ops.memory import one_thread
from voxelwave.ops.seeding import torch_generator


class ReconstructionFiles(NamedTuple):
    """The files of training, and those of validation."""

    training: list[KspaceFile]
    validation: list[KspaceFile]

    @property
    def named(self) -> dict[str, list[Path]]:
        """The places of both."""
        return {name: [file.path for file in files] for name, files in zip(self._fields, self, strict=True) if files}


def find_files(
    data: ReconstructionData, *, seed: int, console: Console, needs_target: bool = False
) -> ReconstructionFiles:
    """Return the files that `data` names; a share of them for validation is drawn by `seed`.

    Raises InputError where there are none, or for one that cannot be used; it is left out with `data.skip_unusable`.
    """
    paths, held_out = find_kspace(data.files), []
    if isinstance(data.validation, str):
        held_out = find_kspace(data.validation)
        validated = set(map(real_path, held_out))
        paths = [path for path in paths if real_path(path) not in validated]
        if not paths:
            raise InputError(f"all files of '{data.files}' are those of data.validation: give others to train on")
    elif data.validation:
        if len(paths) == 1:
            raise InputError(f"{paths[0]} is the only file, and data.validation={data.validation:g}: set it to 0")
        count = min(max(round(data.validation * len(paths)), 1), len(paths) - 1)
        drawn = drawn_to_validate(paths, count, torch_generator(seed, "validation"))
        if not drawn:
            raise InputError(f"all {len(paths)} files of '{data.files}' are of one subject: set data.validation to 0")
        held_out = [paths[index] for index in sorted(drawn)]
        paths = [path for index, path in enumerate(paths) if index not in drawn]
    check = partial(check_target, readout_rows=data.readout_rows, needed=needs_target, data_range=data.data_range)
    training, validation = (
        open_kspace(places, skip_unusable=data.skip_unusable, console=console, check=check) if places else []
        for places in (paths, held_out)
    )
    return ReconstructionFiles(training, validation)


class ReconstructionSteps(Dataset[ReconstructionBatch]):
    """Every micro-batch by its number. Each epoch has an order of its own, and leaves out what fills no step."""

    def __init__(self, config: ReconstructionConfig, files: Sequence[KspaceFile], *, neighbours: int) -> None:
        self.blocks, self._seed = blocks_of(config.blocks), config.run.seed
        self._slices = KspaceSlices(
            files, neighbours=neighbours, seed=config.run.seed, data_range=config.data.data_range
        )
        self._prepare, self._band_rows = preparation_of(config.data), config.data.band_rows
        self._modality = config.data.anatomy or "kspace"
        self._accumulate, self._skips = config.training.accumulate, config.data.skip_unusable
        self._built: Block | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps; 0 where there are fewer slices than one takes."""
        return len(self._slices) // self._accumulate

    def epoch_of(self, step: int) -> int:
        """Return the epoch, counted from 1, that a step is of."""
        return step // self.steps_per_epoch + 1

    def __getitem__(self, micro: int) -> ReconstructionBatch:
        """Return the micro-batch with this number since the start of the training, a band of it where that is asked.

        Raises as `whole` does.
        """
        batch = self.whole(micro)
        if self._band_rows is None:
            return batch
        with one_thread():
            return band_of(batch, self._band_rows, torch_generator(self._seed, "band", micro))

    def whole(self, micro: int) -> ReconstructionBatch:
        """Return the whole slice of a micro-batch.

        Where slices that cannot be used are to be skipped, the next one of the epoch's order stands for one.
        Raises InputError for one that cannot be used.
        """
        step, part = divmod(micro, self._accumulate)
        epoch = self.epoch_of(step)
        place = step % self.steps_per_epoch * self._accumulate + part
        order = torch.randperm(len(self._slices), generator=torch_generator(self._seed, "order", epoch))
        block = block_at(self.blocks, epoch)
        if block is not self._built:
            self._slices.augment, self._slices.sampling, self._built = block.augment(), block.sampling(), block
        self._slices.set_epoch(epoch)
        passed_over = list[tuple[int, str]]()
        for later in range(len(order)):
            index = int(order[(place + later) % len(order)])
            try:
                with one_thread():  # as in a worker process
                    batch = batch_of(self._slices, index, self._prepare, self._modality)
                return batch._replace(passed_over=tuple(passed_over))
            except InputError as error:
                if not self._skips:
                    raise InputError(
                        f"{error}; --resume --set data.skip_unusable=true leaves such slices out, and counts them"
                    ) from None
                passed_over.append((index, str(error)))
        raise InputError(f"none of the {len(passed_over)} slices can be used; the first, {passed_over[0][1]}")

    def describe(self, micro: int) -> str:
        """Say what a worker is at."""
        return f"the slice of step {micro // self._accumulate}"

    def batches(
        self, start_step: int, end_step: int, *, num_workers: int = 0, timeout_s: float = WORKER_TIMEOUT_S
    ) -> Iterator[ReconstructionBatch]:
        """Yield the micro-batches of a range of steps, in order, and say once of each slice that it is passed over."""
        said = set[int]()
        loader = WatchedLoader(
            self,
            self.describe,
            batch_size=None,
            sampler=range(start_step * self._accumulate, end_step * self._accumulate),
            num_workers=num_workers,
            timeout_s=timeout_s,
        )
        for batch in loader:
            for index, reason in batch.passed_over:
                if index not in said:
                    said.add(index)
                    logger.warning("passed over, %d so far: %s", len(said), reason)
            yield batch


class HeldOut(Sequence[ReconstructionBatch]):
    """The slices of validation, which never change: masks are drawn as in the last block, by the names of the files.

    Each is read once at the start, so that one that cannot be used is known before anything is trained; with
    `data.skip_unusable` it is left out and said.
    Raises InputError for the first that cannot be used, and where none is left.
    """

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
        self._usable, refused = list[int](), list[str]()
        for index in range(len(self._slices)):
            try:
                self._read(index)
                self._usable.append(index)
            except InputError as error:
                if not config.data.skip_unusable:
                    raise
                refused.append(str(error))
                logger.warning("passed over in validation, %d so far: %s", len(refused), error)
        if not self._usable:
            raise InputError(f"none of the {len(refused)} slices of validation can be used; the first, {refused[0]}")

    def __len__(self) -> int:
        return len(self._usable)

    def __getitem__(self, item: int) -> ReconstructionBatch:  # type: ignore[override]  # no slices of it are taken
        """Return one slice; raises IndexError beyond the last."""
        return self._read(self._usable[item])

    def _read(self, index: int) -> ReconstructionBatch:
        with one_thread():
            return batch_of(self._slices, index, self._prepare, self._modality)


def preparation_of(data: ReconstructionData) -> Preparation:
    """Return what is done to all k-space of a configuration."""
    return Preparation(coils=data.coils, readout_rows=data.readout_rows)
