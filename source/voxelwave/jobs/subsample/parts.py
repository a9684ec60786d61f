"""The images of a run, parted by subject: those of the test are checked at first, and scored at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.subsample.config import SubsampleData
from voxelwave.jobs.subsample.images import PARTS, RECORD, ImageSet, Parted, check_same_size, read_stored
from voxelwave.jobs.subsample.sources import Volumes, volumes_of
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fourier import fft2c


def load_images(data: SubsampleData, *, console: Console | None = None) -> Parted:
    """Read the images of training and validation, and say what they are.

    Those of the test are checked and let go again: what is wrong with them is better said before hours of training.
    Raises InputError where there are too few volumes, sizes differ, or one cannot be used.
    """
    if (folder := Path(data.source).expanduser()).is_dir() and (folder / RECORD).exists():
        return read_stored(folder)
    volumes = volumes_of(data)
    parts = part(volumes, validation=data.validation, test=data.test, seed=data.seed)
    training, validation = (_read(volumes, parts[name]) for name in PARTS[:2])
    check_same_size(training, validation)
    _check_apart(training, validation)
    open_test = partial(_opened, volumes, parts["test"], training, validation)
    open_test()
    counts = {name: len(numbers) for name, numbers in parts.items()}
    unknown = sum(not subject for subject in volumes.subjects)
    parted = Parted(training, validation, open_test, counts, volumes.kind, unknown)
    said = ", ".join(f"{count} of {name}" for name, count in counts.items())
    lines = [f"{volumes.kind}; volumes: {said}; {training.shape[0]} × {training.shape[1]} frequencies"]
    if volumes.unused:
        lines.append(
            f"{data.source} holds {volumes.unused} more: data.volumes is {data.volumes}, data.slices {data.slices}"
        )
    if parted.unknown:
        lines.append(f"nothing tells whose {parted.unknown} of the volumes are: some of a subject may be in two parts")
    (console or Console(quiet=True)).say(*lines)
    return parted


def part(volumes: Volumes, *, validation: float, test: float, seed: int) -> dict[str, list[int]]:
    """Return the numbers of the volumes of each part; those of one subject are together, the order follows from `seed`.

    Raises InputError where there are fewer than three subjects.
    """
    groups: dict[str, list[int]] = {}
    for number, (origin, subject) in enumerate(zip(volumes.origins, volumes.subjects, strict=True)):
        groups.setdefault(subject or f"volume {origin}", []).append(number)
    names, total = list(groups), len(volumes.origins)
    if len(names) < len(PARTS):
        raise InputError(
            f"too few images for the split: training, validation and test need a subject each, and there are "
            f"{len(names)}: give more, or lower data.slices"
        )
    wanted = {"test": test * total, "validation": validation * total}
    order = [names[index] for index in torch.randperm(len(names), generator=torch_generator(seed, "split")).tolist()]
    # Subjects with more images than test and validation want come first, so that these are filled with smaller ones.
    order.sort(key=lambda name: len(groups[name]) / 2 <= max(wanted.values()))
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        empty = [one for one in PARTS if not parts[one]]
        # Test first, then validation; where only as many are left as there are parts without any, these have them.
        short = [one for one, count in wanted.items() if len(parts[one]) + len(groups[name]) / 2 <= count]
        chosen = (short or ["training"])[0]
        if left <= len(empty) and chosen not in empty:
            chosen = empty[0]
        parts[chosen] += groups[name]
    return {name: sorted(numbers) for name, numbers in parts.items()}


def _read(volumes: Volumes, numbers: Sequence[int]) -> ImageSet:
    images, names, subjects, marks = list[Tensor](), list[str](), list[str](), list[str]()
    # Names come into results and onto pages that are shown to others, who need no path of this machine.
    folder = os.path.commonpath([Path(origin).parent for origin in volumes.origins])
    for number in numbers:
        origin = volumes.origins[number]
        try:
            of, marks_of = volumes.read(number)
        except UnusableVolume as error:
            raise InputError(f"{origin}: {error}") from None
        if images and of.shape[1:] != images[0].shape[1:]:
            sizes = [f"{one.shape[1]} × {one.shape[2]}" for one in (images[0], of)]
            raise InputError(f"{origin}: its images are {sizes[1]}, and others {sizes[0]}: set data.size to one size")
        images.append(of)
        marks += marks_of
        subjects += [volumes.subjects[number] or origin] * len(of)
        name = os.path.relpath(origin, folder)
        names += [f"{name}, image {index}" if len(of) > 1 else name for index in range(len(of))]
    stacked = torch.cat(images)
    if not bool(stacked.isfinite().all()):
        raise InputError(f"{names[0]} or another image holds values that are not finite")
    for name, image in zip(names, stacked, strict=True):
        if not bool(image.any()):
            raise InputError(f"{name}: is constant 0, of which no PSNR can be said: leave it out")
    return ImageSet(fft2c(stacked), names, subjects, marks)


def _opened(volumes: Volumes, numbers: Sequence[int], *others: ImageSet) -> ImageSet:
    """Return the images of the test; raises InputError where one of them is among the others, too."""
    test = _read(volumes, numbers)
    check_same_size(*others, test)
    for of in others:
        _check_apart(of, test)
    return test


def _check_apart(one: ImageSet, other: ImageSet) -> None:
    """Raise InputError where something is in both sets."""
    seen = dict(zip(one.marks, one.names, strict=True))
    for mark, name in zip(other.marks, other.names, strict=True):
        if mark in seen:
            raise InputError(f"{name} and {seen[mark]} are the same, and in two parts: leave one of them out")
