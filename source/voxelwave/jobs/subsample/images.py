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
from voxelwave.data.reading.unreadable import as_unusable
from voxelwave.errors import DamagedVolume, InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.kspace_files import SUFFIX, find_kspace
from voxelwave.jobs.common.magnitude_images import GENERATED, SMALLEST_SIDE, Slices, image_source
from voxelwave.jobs.subsample.config import SubsampleData
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.seeding import key_to_seed, torch_generator
from voxelwave.ops.texts import read_json, to_json
from voxelwave.physics.acquisition import complex_noise
from voxelwave.physics.fourier import center_crop, fft2c, ifft2c

SUBJECT = "patient_id"  # an attribute of fastMRI's files
PARTS = ("training", "validation", "test")
RECORD, FORMAT = "subsample_images.json", "images of voxelwave subsample"
Images = Complex64[Tensor, "image height width"]


class ImageSet(NamedTuple):
    """K-space of some images, each with its name, whose it is, and a mark: the same for the same source.

    Where nothing tells the subject, its volume stands for it.
    """

    kspace: Images
    names: list[str]
    subjects: list[str]
    marks: list[str]

    @property
    def fingerprint(self) -> str:
        """Tells this set from any other: how many images it holds, and a checksum of their marks."""
        return f"{len(self.marks)}:{key_to_seed(*self.marks):016x}"

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
    _check_apart(training, validation)
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
    record: dict[str, Any] = {"format": FORMAT, "counts": parted.counts, "kind": parted.kind, "unknown": parted.unknown}
    for name in PARTS[:2]:
        images: ImageSet = getattr(parted, name)
        with replacing(folder / f"{name}.npy") as path, path.open("wb") as file:
            np.save(file, images.kspace.numpy())
        record[name] = {"names": images.names, "subjects": images.subjects, "marks": images.marks}
    write_text(folder / RECORD, to_json(record))


def read_stored(folder: Path) -> Parted:
    """Read what `store` wrote; raises InputError for a folder that holds something else."""
    sets = []
    try:
        record = read_json(folder / RECORD)
        if record["format"] != FORMAT:
            raise ValueError(f"{RECORD} is of another format")
        for name in PARTS[:2]:
            path = folder / f"{name}.npy"
            with as_unusable(path), path.open("rb") as file:
                kspace = torch.from_numpy(np.load(file, allow_pickle=False))
            of = record[name]
            if kspace.ndim != 3 or kspace.dtype != torch.complex64 or not len(kspace) or not kspace.isfinite().all():
                raise ValueError(f"{name}.npy holds no images")
            images = ImageSet(kspace, *([str(one) for one in of[key]] for key in ("names", "subjects", "marks")))
            if {len(column) for column in images[1:]} != {len(kspace)}:
                raise ValueError(f"{name}.npy does not fit {RECORD}")
            sets.append(images)
        _check_same_size(*sets)
        counts = {str(name): int(count) for name, count in record["counts"].items()}
        return Parted(sets[0], sets[1], None, counts, str(record["kind"]), int(record["unknown"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UnusableVolume, DamagedVolume) as error:
        raise InputError(f"{folder}: its images cannot be used: {error}") from None


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
    images, names, subjects, marks = list[Tensor](), list[str](), list[str](), list[str]()
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
        names += [f"{origin}, image {index}" if len(of) > 1 else origin for index in range(len(of))]
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
    _check_same_size(*others, test)
    for of in others:
        _check_apart(of, test)
    return test


def _check_apart(one: ImageSet, other: ImageSet) -> None:
    """Raise InputError where something is in both sets."""
    seen = dict(zip(one.marks, one.names, strict=True))
    for mark, name in zip(other.marks, other.names, strict=True):
        if mark in seen:
            raise InputError(f"{name} and {seen[mark]} are the same, and in two parts: leave one of them out")


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
    """Tell whether a folder or a glob leads to files of k-space; a single file says so by its name."""
    if source in GENERATED or Path(source).expanduser().is_file():
        return False
    try:
        return bool(find_kspace(source))
    except InputError:
        return False


def _complex(data: SubsampleData, read: Callable[[int], Slices], number: int) -> tuple[Images, list[str]]:
    images, slices = [], read(number)
    for index, magnitude in enumerate(slices.images):
        if bool(magnitude.min() == magnitude.max()):
            raise UnusableVolume(f"image {index} is constant, and shows nothing: leave it out")
        generator = torch_generator(data.seed, "phase", number, index)
        shape = (magnitude.shape[0], magnitude.shape[1])
        if data.phase:
            image = torch.polar(magnitude, smooth_phase(shape, generator))
            images.append(image + complex_noise(shape, generator, sigma=data.noise))
        else:
            images.append(magnitude + 0j)
    return torch.stack(images), list(slices.marks) or [_mark(magnitude) for magnitude in slices.images]


def _measured(data: SubsampleData) -> Volumes:
    files = [KspaceFile(path) for path in find_kspace(data.source)[: data.volumes]]
    padded = 0
    for file in files:
        if file.info.num_coils != 1:
            raise InputError(f"{file.path}: has {file.info.num_coils} coils, and this job takes files of a single one")
        if file.info.sampled is not None:
            raise InputError(f"{file.path}: is undersampled by its mask, and nothing tells what that leaves out")
        padded += file.info.measured_columns != (0, file.info.size[1])
    # Scanners fill the outermost columns with 0: that lowers the resolution of whole and subsampled images alike.
    kind = f"measured single-coil k-space of {data.source}"
    return Volumes(
        [str(file.path) for file in files],
        [_subject(file.path) for file in files],
        lambda number: _measured_images(files[number], data),
        f"{kind}, of which {padded} of {len(files)} files are filled with 0 at the sides" if padded else kind,
    )


def _subject(path: Path) -> str:
    try:
        with opened(path) as file:
            said = file.attrs.get(SUBJECT, "")
    except (UnusableVolume, DamagedVolume, OSError):  # of formats that say it elsewhere, or not
        return ""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


def _measured_images(file: KspaceFile, data: SubsampleData) -> tuple[Images, list[str]]:
    """Return `data.slices` images of a volume from its middle, each the centre of its image."""
    count = min(data.slices, len(file))
    first = (len(file) - count) // 2
    images = ifft2c(torch.cat([file.slice(index)[:, 0] for index in range(first, first + count)]))
    height, width = images.shape[1:]
    rows, columns = (data.size, data.size) if data.size else (file.info.target_size or (height, width))
    if rows > height or columns > width:
        raise UnusableVolume(f"its images are {height} × {width}, and {rows} × {columns} are asked for: set data.size")
    if min(rows, columns) < SMALLEST_SIDE:
        raise UnusableVolume(f"its images are {rows} × {columns}, and {SMALLEST_SIDE} pixels a side are needed")
    cropped = center_crop(images, (rows, columns)).contiguous()
    return cropped, [_mark(image) for image in cropped]
