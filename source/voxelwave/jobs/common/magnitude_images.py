"""Magnitude images that k-space is made of: slices of generated heads and phantoms, and of what a user has."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int, Real
from numpy import ndarray
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor

from voxelwave.data.kspace.hdf5 import MOST_SLICES
from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.discovery import home_expanded
from voxelwave.data.listing.images import find_images
from voxelwave.data.listing.scans import Scan
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.reading.unreadable import as_unusable
from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.config import Section
from voxelwave.ops.seeding import numpy_generator, torch_generator
from voxelwave.physics.heads3d import HEAD_MM, PARENCHYMA, Tissue, draw_head, render_mri
from voxelwave.physics.phantoms2d import draw_phantoms

HEADS, PHANTOMS = "heads", "phantoms"
GENERATED = (HEADS, PHANTOMS)
SMALLEST_SIDE, LARGEST_SIDE = 32, 512
MOST_VOLUMES = 100_000
MOST_STACKED = 2**29  # values of a stack
CONTRASTS = ("T1", "T2", "FLAIR")
STACKS = (".npy", ".npz")
PHANTOM_MM = 230.0
SLICE_GAP_MM = 5.0
ENOUGH = 0.4  # of the area of the largest slice

Magnitudes = Float32[ndarray, "slice rows columns"]


class MagnitudeConfig(Section):
    """Images to make k-space of.

    `source` is "heads", "phantoms", or a path: scans that `voxelwave prepare` reads, as a file, a folder or a glob, or
    a stack of images as .npy or .npz. There are `volumes` volumes of `slices` slices, fewer where the path holds no
    more. Images fill a square of `size` pixels; null keeps those of a path as they are.
    """

    source: Annotated[str, Field(min_length=1)] = HEADS
    volumes: Annotated[int, Field(ge=1, le=MOST_VOLUMES)] = 16
    slices: Annotated[int, Field(ge=1, le=MOST_SLICES)] = 4
    size: Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE)] | None = 128
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _has_a_size(self) -> MagnitudeConfig:
        if self.size is None and self.source in GENERATED:
            raise ValueError(f"size is needed for generated {self.source}: only the images of files have one")
        return self


class Slices(NamedTuple):
    """Slices of one volume, from feet to head; rows lead to the back, columns to the left of the patient.

    Attributes:
        images: none below 0, the brightest pixel 1.
        contrast: "" where nothing tells.
        spacing_mm: of rows, of columns, and of slices.
        marks: of each slice, of what it was before it was chosen and scaled: the same for the same volume or image.
    """

    images: Float32[Tensor, "slice rows columns"]
    contrast: str = ""
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, SLICE_GAP_MM)
    marks: tuple[str, ...] = ()


class ImageSource(NamedTuple):
    """Where each volume is from, and what reads or draws one by its number; that raises UnusableVolume.

    `subjects` say whose volume each is, "" where nothing tells. `left_out` are files that are no scans, each with the
    reason. `unused` says what the source holds beyond what is asked for, "" where it is nothing.
    """

    origins: list[str]
    subjects: list[str]
    read: Callable[[int], Slices]
    left_out: Sequence[str] = ()
    unused: str = ""


def image_source(settings: MagnitudeConfig) -> ImageSource:
    """Return the images of `settings.source`; raises InputError where there are none."""
    numbers = range(settings.volumes)
    if settings.source == HEADS:
        heads = [f"generated head {number}" for number in numbers]
        return ImageSource(heads, heads, partial(_head, settings))
    if settings.source == PHANTOMS:
        phantoms = [f"generated phantoms {number}" for number in numbers]
        return ImageSource(phantoms, phantoms, partial(_phantoms, settings))
    place = home_expanded(settings.source)
    if place.suffix.lower() in STACKS:
        try:
            stack = _stack(place, settings.slices)
        except UnusableVolume as error:
            raise InputError(f"{place}: {error}") from None
        starts = range(0, len(stack) - settings.slices + 1, settings.slices)[: settings.volumes]
        origins = [f"{place}, images {start} to {start + settings.slices - 1}" for start in starts]
        more = len(stack) - len(starts) * settings.slices
        read = partial(_part_of_stack, settings, stack)
        return ImageSource(origins, [""] * len(origins), read, unused=f"{more} images" if more else "")
    found, label_maps, unread, _ = find_images(settings.source, None)
    cases = found[: settings.volumes]
    origins, subjects = [str(case.image) for case in cases], [case.subject for case in cases]
    more = len(found) - len(cases)
    unused = f"{more} volumes" if more else ""
    return ImageSource(origins, subjects, partial(_scan, settings, cases), [*label_maps, *unread], unused)


def _head(settings: MagnitudeConfig, number: int) -> Slices:
    assert settings.size is not None
    generator = numpy_generator(settings.seed, "head", number)
    labels = draw_head(generator, size=settings.size)
    contrast = CONTRASTS[number % len(CONTRASTS)]
    # The scanner adds the noise, so that the noise of all coils is known.
    image = render_mri(labels, generator, contrast=contrast, noise=(0, 0))
    spacing = HEAD_MM / settings.size
    brain = np.isin(labels, (*PARENCHYMA, Tissue.VENTRICLE)).sum((0, 1))
    chosen = _chosen_slices(brain, settings, number, spacing_mm=spacing)
    return Slices(_scaled(_axial(image, chosen)), contrast, (spacing, spacing, _gap(chosen) * spacing))


def _phantoms(settings: MagnitudeConfig, number: int) -> Slices:
    assert settings.size is not None
    keys = [(settings.seed, "phantom", number, index) for index in range(settings.slices)]
    images = draw_phantoms([torch_generator(*key) for key in keys], size=settings.size)
    pixel = PHANTOM_MM / settings.size
    return Slices(_scaled(images.numpy()), "", (pixel, pixel, SLICE_GAP_MM))


def _scan(settings: MagnitudeConfig, cases: list[Case], number: int) -> Slices:
    case = cases[number]
    array, affine, _ = Scan(case.image, case.image.parent, series=case.series).read()
    if array.ndim != 3:
        raise UnusableVolume(f"one channel is needed, got shape {array.shape}")
    if reason := label_map_reason(case.image, array):
        raise UnusableVolume(reason)
    _check(array)
    modality = MRI()
    shown = modality.foreground(array, modality.bounds(array)).sum((0, 1))
    right, front, up = (float(side) for side in np.linalg.norm(affine[:3, :3], axis=0))
    chosen = _chosen_slices(shown, settings, number, spacing_mm=up)
    images, pixels = _fitted(_scaled(_axial(array, chosen)), (front, right), settings.size)
    return Slices(images, "", (*pixels, _gap(chosen) * up), (_mark(array),) * len(images))


def _part_of_stack(settings: MagnitudeConfig, stack: Real[ndarray, "image rows columns"], number: int) -> Slices:
    start = number * settings.slices
    images = np.asarray(stack[start : start + settings.slices], dtype=np.float32)
    _check(images)
    fitted, pixels = _fitted(_scaled(images), (1.0, 1.0), settings.size)
    return Slices(fitted, "", (*pixels, SLICE_GAP_MM), tuple(_mark(image) for image in images))


def _mark(array: Real[ndarray, "..."]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _stack(path: Path, slices: int) -> Real[ndarray, "image rows columns"]:
    """Return the array of a file, of an archive the first with three axes."""
    with as_unusable(path):
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, ndarray):
            name = _stacked(path)
            loaded = None if name is None else loaded[name]
        stack = None if loaded is None or loaded.ndim != 3 else loaded
    if stack is None:
        raise UnusableVolume("holds no array of three axes, images × rows × columns")
    if stack.dtype.kind not in "fiu":
        raise UnusableVolume(f"its images are of type {stack.dtype}, real magnitudes are needed")
    if len(stack) < slices:
        raise UnusableVolume(f"too few images for a volume: {len(stack)}, and {slices} slices are asked for")
    return np.asarray(stack)


def _stacked(archive: Path) -> str | None:
    """Return the first array with three axes, of which nothing is unpacked; raises UnusableVolume for a larger one."""
    with zipfile.ZipFile(archive) as members:
        for name in members.namelist():
            with members.open(name) as stream:
                newer = np.lib.format.read_magic(stream) > (1, 0)
                read = np.lib.format.read_array_header_2_0 if newer else np.lib.format.read_array_header_1_0
                shape, _, _ = read(stream)
            if len(shape) == 3:
                if (values := math.prod(shape)) > MOST_STACKED:
                    raise UnusableVolume(f"'{name}' holds {values:,} values, more than is read: {MOST_STACKED:,}")
                return name.removesuffix(".npy")
    return None


def _check(images: Real[ndarray, "first second third"]) -> None:
    """Raise UnusableVolume where there is no image."""
    if not np.isfinite(images).all():
        raise UnusableVolume("holds NaN or infinite values")
    if images.min() == images.max():
        raise UnusableVolume(f"holds no image: every value is {images.min():g}")


def _chosen_slices(
    areas: Int[ndarray, " slice"], settings: MagnitudeConfig, number: int, *, spacing_mm: float
) -> Int[ndarray, " chosen"]:
    """Return slices about `SLICE_GAP_MM` apart, or nearer where there is no room, among those that show enough.

    Raises UnusableVolume where there are too few of these.
    """
    enough = np.flatnonzero(areas >= ENOUGH * areas.max())
    first, room, count = int(enough[0]), int(enough[-1] - enough[0] + 1), settings.slices
    if room < count:
        raise UnusableVolume(f"too few slices that show enough: {room}, and {count} are asked for")
    step = max(1, min(round(SLICE_GAP_MM / spacing_mm), (room - 1) // max(count - 1, 1)))
    slack = room - 1 - (count - 1) * step
    start = first + int(numpy_generator(settings.seed, "slices", number).integers(slack + 1))
    return start + step * np.arange(count)


def _gap(chosen: Int[ndarray, " chosen"]) -> int:
    return int(chosen[1] - chosen[0]) if len(chosen) > 1 else 1


def _axial(volume: Float32[ndarray, "right front up"], chosen: Int[ndarray, " slice"]) -> Magnitudes:
    """Return slices as a radiologist sees them, the front above and the right of the patient on the left."""
    return np.ascontiguousarray(volume[::-1, ::-1, chosen].transpose(2, 1, 0))


def _scaled(images: Magnitudes) -> Float32[Tensor, "slice rows columns"]:
    """Return images whose largest value is 1, raised where values are below 0, so that none is.

    Raises UnusableVolume where all pixels are equal.
    """
    low, high = float(images.min()), float(images.max())
    if low == high:
        raise UnusableVolume("the slices that were chosen hold no image: all of their pixels are equal")
    floor = min(low, 0.0)
    return (torch.from_numpy(images) - floor) / (high - floor)


def _fitted(
    images: Float32[Tensor, "slice rows columns"], spacing_mm: tuple[float, float], size: int | None
) -> tuple[Float32[Tensor, "slice height width"], tuple[float, float]]:
    """Return images in the middle of a square of `size` square pixels, and the spacing of these; None leaves them.

    Raises UnusableVolume for images that are too small.
    """
    sides = images.shape[1:]
    if min(sides) < SMALLEST_SIDE:
        raise UnusableVolume(f"too small: a slice needs {SMALLEST_SIDE} pixels a side, got {sides[0]} × {sides[1]}")
    if size is None:
        return images, spacing_mm
    extents = [side * spacing for side, spacing in zip(sides, spacing_mm, strict=True)]
    pixel = max(extents) / size
    rows, columns = (max(1, round(extent / pixel)) for extent in extents)
    if (rows, columns) != tuple(sides):
        images = F.interpolate(images[:, None], (rows, columns), mode="bilinear", antialias=True)[:, 0]
    above, left = (size - rows) // 2, (size - columns) // 2
    return F.pad(images, (left, size - columns - left, above, size - rows - above)), (pixel, pixel)
