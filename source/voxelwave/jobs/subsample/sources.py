"""Where complex images come from: magnitudes that are given a phase, and measured k-space."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.slices import has_gaps, measured_columns
from voxelwave.data.kspace.synthesis import smooth_phase
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.kspace_files import SUFFIX, find_kspace, subject_of
from voxelwave.jobs.common.magnitude_images import GENERATED, SMALLEST_SIDE, Slices, image_source
from voxelwave.jobs.subsample.config import SubsampleData
from voxelwave.jobs.subsample.images import Images
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import complex_noise
from voxelwave.physics.fourier import center_crop, ifft2c


class Volumes(NamedTuple):
    """Where each volume is from, whose it is ("" where nothing tells), and what reads its images with their marks.

    `unused` says what else the source holds, "" where it is nothing.
    """

    origins: list[str]
    subjects: list[str]
    read: Callable[[int], tuple[Images, list[str]]]
    kind: str
    unused: str = ""


def volumes_of(data: SubsampleData) -> Volumes:
    """Return the volumes of `data.source`; raises InputError where it has none that can be used."""
    if data.source.lower().endswith(SUFFIX) or _holds_kspace(data.source):
        return _measured(data)
    source = image_source(data)
    kind = f"semi-synthetic images of {'generated ' * (data.source in GENERATED)}{Path(data.source).name}"
    if not data.phase:
        kind = f"magnitude images of {Path(data.source).name}, whose k-space holds everything twice"
    return Volumes(source.origins, source.subjects, partial(_complex, data, source.read), kind, source.unused)


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
    paths = find_kspace(data.source)
    files = [KspaceFile(path) for path in paths[: data.volumes]]
    padded, more = 0, len(paths) - len(files)
    for file in files:
        if file.info.num_coils != 1:
            raise InputError(f"{file.path}: has {file.info.num_coils} coils, and this job takes files of a single one")
        if file.info.sampled is not None:
            raise InputError(f"{file.path}: is undersampled by its mask, and nothing tells what that leaves out")
        padded += file.info.measured_columns != (0, file.info.size[1])
    # Scanners fill the outermost columns with 0: that lowers the resolution of whole and subsampled images alike.
    kind = f"measured single-coil k-space of {Path(data.source).name}"
    return Volumes(
        [str(file.path) for file in files],
        [subject_of(file.path) for file in files],
        lambda number: _measured_images(files[number], data),
        f"{kind}, of which {padded} of {len(files)} files are filled with 0 at the sides" if padded else kind,
        f"{more} files" if more else "",
    )


def _measured_images(file: KspaceFile, data: SubsampleData) -> tuple[Images, list[str]]:
    """Return `data.slices` images of a volume from its middle, each the centre of its image."""
    count = min(data.slices, len(file))
    first = (len(file) - count) // 2
    kspace = torch.cat([file.slice(index) for index in range(first, first + count)])
    if has_gaps(measured_columns(kspace, file.path)):
        raise UnusableVolume("is undersampled already, and nothing tells what that leaves out")
    images = ifft2c(kspace[:, 0])
    height, width = images.shape[1:]
    rows, columns = (data.size, data.size) if data.size else (file.info.target_size or (height, width))
    if rows > height or columns > width:
        raise UnusableVolume(f"its images are {height} × {width}, and {rows} × {columns} are asked for: set data.size")
    if min(rows, columns) < SMALLEST_SIDE:
        raise UnusableVolume(f"its images are {rows} × {columns}, and {SMALLEST_SIDE} pixels a side are needed")
    cropped = center_crop(images, (rows, columns)).contiguous()
    return cropped, [_mark(image) for image in cropped]


def _mark(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
