"""The images of a run as k-space, parted by subject and volume, and those of the test behind a seal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Complex64
from torch import Tensor

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.hdf5 import opened
from voxelwave.data.kspace.synthesis import smooth_phase
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.kspace_files import SUFFIX, find_kspace
from voxelwave.jobs.common.magnitude_images import GENERATED, Slices, image_source
from voxelwave.jobs.subsample.config import SubsampleData
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.seeding import torch_generator
from voxelwave.ops.texts import read_json, to_json
from voxelwave.physics.acquisition import complex_noise
from voxelwave.physics.fourier import center_crop, fft2c, ifft2c

SUBJECT = "patient_id"  # an attribute of fastMRI's files
PARTS = ("training", "validation", "test")
RECORD = "images.json"
Images = Complex64[Tensor, "image height width"]


class ImageSet(NamedTuple):
    """K-space of some images, each with its name, the volume that it is of, and a mark: the same for equal pixels."""

    kspace: Images
    names: list[str]
    volumes: list[str]
    marks: list[str]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.kspace.shape[1], self.kspace.shape[2]

    def one(self, index: int) -> ImageSet:
        """Return the set of one image."""
        return ImageSet(self.kspace[index : index + 1], *(of[index : index + 1] for of in self[1:]))


class Volumes(NamedTuple):
    """Where each volume is from, whose it is ("" where nothing tells), and what reads its images with their marks."""

    origins: list[str]
    subjects: list[str]
    read: Callable[[int], tuple[Images, list[str]]]
    kind: str


class Parted(NamedTuple):
    """The images of a source. Those of the test are read when `open_test` is called, and not before.

    `kind` says what they are; `unknown` is the number of volumes whose subject nothing tells.
    """

    training: ImageSet
    validation: ImageSet
    open_test: Callable[[], ImageSet] | None
    counts: dict[str, int]
    kind: str
    unknown: int


def load_images(data: SubsampleData, *, console: Console | None = None) -> Parted:
    """Read the images of training and validation, and say what they are.

    Raises InputError where there are too few volumes, sizes differ, or one cannot be used.
    """
    if (folder := Path(data.source).expanduser()).is_dir() and (folder / RECORD).exists():
        return read_stored(folder)
    volumes = _volumes(data)
    parts = part(volumes, validation=data.validation, test=data.test, seed=data.seed)
    training, validation = (_read(volumes, parts[name]) for name in PARTS[:2])
    _check_same_size(training, validation)
    counts = {name: len(numbers) for name, numbers in parts.items()}
    parted = Parted(
        training,
        validation,
        partial(_opened, volumes, parts["test"], training, validation),
        counts,
        volumes.kind,
        sum(not subject for subject in volumes.subjects),
    )
    said = ", ".join(f"{count} of {name}" for name, count in counts.items())
    lines = [f"{volumes.kind}; volumes: {said}; {training.shape[0]} × {training.shape[1]} frequencies"]
    if parted.unknown:
        lines.append(f"nothing tells whose {parted.unknown} of the volumes are: some of a subject may be in two parts")
    (console or Console(quiet=True)).say(*lines)
    return parted


def store(parted: Parted, folder: Path) -> None:
    """Write the images of training and validation, and none of the test, as a source for other runs."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"counts": parted.counts, "kind": parted.kind, "unknown": parted.unknown}
    for name in PARTS[:2]:
        images: ImageSet = getattr(parted, name)
        with replacing(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, images.kspace.numpy())
        record[name] = {"names": images.names, "volumes": images.volumes, "marks": images.marks}
    write_text(folder / RECORD, to_json(record))


def read_stored(folder: Path) -> Parted:
    """Read what `store` wrote; raises InputError for a folder that holds something else."""
    try:
        record = read_json(folder / RECORD)
        sets = []
        for name in PARTS[:2]:
            kspace = torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False))
            of = record[name]
            images = ImageSet(kspace, *([str(one) for one in of[key]] for key in ("names", "volumes", "marks")))
            if kspace.ndim != 3 or kspace.dtype != torch.complex64 or {len(of) for of in images} != {len(kspace)}:
                raise ValueError(f"{name}.npy does not fit {RECORD}")
            sets.append(images)
        counts = {str(name): int(count) for name, count in record["counts"].items()}
        return Parted(sets[0], sets[1], None, counts, str(record["kind"]), int(record["unknown"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder} holds no images that can be used: {error}; delete it") from None


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
    order = [names[index] for index in torch.randperm(len(names), generator=torch_generator(seed, "split")).tolist()]
    parts: dict[str, list[int]] = {name: [] for name in PARTS}
    for left, name in zip(range(len(order), 0, -1), order, strict=True):
        empty = [one for one in PARTS if not parts[one]]
        wanted = {"test": test * total, "validation": validation * total}
        # Test first, then validation; where only as many are left as there are parts without any, these have them.
        short = [one for one, count in wanted.items() if len(parts[one]) + len(groups[name]) / 2 <= count]
        chosen = (short or [one for one in ("test", "validation") if not parts[one]] or ["training"])[0]
        if left <= len(empty) and chosen not in empty:
            chosen = empty[0]
        parts[chosen] += groups[name]
    return {name: sorted(numbers) for name, numbers in parts.items()}


def _read(volumes: Volumes, numbers: Sequence[int]) -> ImageSet:
    images, names, origins, marks = list[Tensor](), list[str](), list[str](), list[str]()
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
        origins += [origin] * len(of)
        names += [f"{origin}, image {index}" if len(of) > 1 else origin for index in range(len(of))]
    stacked = torch.cat(images)
    if not bool(stacked.isfinite().all()):
        raise InputError(f"{names[0]} or another image holds values that are not finite")
    for name, image in zip(names, stacked, strict=True):
        if not bool(image.any()):
            raise InputError(f"{name}: is constant 0, of which no PSNR can be said: leave it out")
    return ImageSet(fft2c(stacked), names, origins, marks)


def _opened(volumes: Volumes, numbers: Sequence[int], *others: ImageSet) -> ImageSet:
    """Return the images of the test; raises InputError where one of them is among the others, too."""
    test = _read(volumes, numbers)
    _check_same_size(*others, test)
    seen = {mark: name for of in others for mark, name in zip(of.marks, of.names, strict=True)}
    for mark, name in zip(test.marks, test.names, strict=True):
        if mark in seen:
            raise InputError(
                f"{name} is the same image as {seen[mark]}, which is not of the test: leave one of them out"
            )
    return test


def _mark(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def _check_same_size(*sets: ImageSet) -> None:
    for images in sets[1:]:
        if images.shape != sets[0].shape:
            sizes = " and ".join(f"{of.shape[0]} × {of.shape[1]}" for of in (sets[0], images))
            raise InputError(f"{images.names[0]}: images are of two sizes, {sizes}: set data.size to one size")


def _volumes(data: SubsampleData) -> Volumes:
    if data.source.lower().endswith(SUFFIX) or _holds_kspace(data.source):
        return _measured(data)
    source = image_source(data)
    kind = f"semi-synthetic images of {'generated ' * (data.source in GENERATED)}{data.source}"
    if not data.phase:
        kind = f"magnitude images of {data.source}, whose k-space holds everything twice"
    return Volumes(source.origins, source.subjects, partial(_complex, data, source.read), kind)


def _holds_kspace(source: str) -> bool:
    if source in GENERATED:
        return False
    try:
        return bool(find_kspace(source)) and Path(source).expanduser().is_dir()
    except InputError:
        return False


def _complex(data: SubsampleData, read: Callable[[int], Slices], number: int) -> tuple[Images, list[str]]:
    images, magnitudes = [], read(number).images
    for index, magnitude in enumerate(magnitudes):
        generator = torch_generator(data.seed, "phase", number, index)
        shape = (magnitude.shape[0], magnitude.shape[1])
        image = torch.polar(magnitude, smooth_phase(shape, generator))
        image = image + complex_noise(shape, generator, sigma=data.noise)
        images.append(image if data.phase else image.abs() + 0j)
    return torch.stack(images), [_mark(magnitude) for magnitude in magnitudes]


def _measured(data: SubsampleData) -> Volumes:
    files = [KspaceFile(path) for path in find_kspace(data.source)[: data.volumes]]
    for file in files:
        if file.info.num_coils != 1:
            raise InputError(f"{file.path}: has {file.info.num_coils} coils, and this job takes files of a single one")
        first, last = file.info.measured_columns
        if file.info.sampled is not None or (first, last) != (0, file.info.size[1]):
            raise InputError(f"{file.path}: is not fully sampled, and nothing can be said of what it leaves out")
    return Volumes(
        [str(file.path) for file in files],
        [_subject(file.path) for file in files],
        lambda number: _measured_images(files[number], data),
        f"measured single-coil k-space of {data.source}",
    )


def _subject(path: Path) -> str:
    with opened(path) as file:
        said = file.attrs.get(SUBJECT, "")
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


def _measured_images(file: KspaceFile, data: SubsampleData) -> tuple[Images, list[str]]:
    """Return `data.slices` images of a volume from its middle, each the centre of its image."""
    count = min(data.slices, len(file))
    first = (len(file) - count) // 2
    images = ifft2c(torch.cat([file.slice(index)[:, 0] for index in range(first, first + count)]))
    rows, columns = (data.size, data.size) if data.size else (file.info.target_size or file.info.size)
    if rows > images.shape[1] or columns > images.shape[2]:
        raise UnusableVolume(
            f"its images are {images.shape[1]} × {images.shape[2]}, and data.size asks for {rows} × {columns}: lower it"
        )
    cropped = center_crop(images, (rows, columns)).contiguous()
    return cropped, [_mark(image) for image in cropped]
