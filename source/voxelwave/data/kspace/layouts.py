"""HDF5 files of fastMRI, multi-coil and single-coil, and of the challenge that keeps k-space and images apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Complex64
from numpy import ndarray

from voxelwave.data.kspace.hdf5 import has, number_attribute, numbers, opened, text, text_attribute
from voxelwave.data.kspace.info import KspaceInfo, as_complex64
from voxelwave.data.kspace.lines import check_centre
from voxelwave.data.kspace.mrd.raw_header import parse_raw_header
from voxelwave.errors import UnusableVolume

KSPACE, MASK, HEADER, MAPS = "kspace", "mask", "ismrmrd_header", "sensitivity_maps"
# By the number of axes of the k-space; the challenge's name comes last.
TARGETS = {4: ("reconstruction_rss", "image_label"), 3: ("reconstruction_esc", "reconstruction_rss", "image_label")}
MAX = "max"


class ArraySource:
    """A file with one array of k-space, [slices, coils, height, width] or [slices, height, width].

    Images and their largest value are looked for in the file itself, then in `images`.
    """

    def __init__(self, path: Path, images: Path | None, *, most_values: int) -> None:
        self.path, self.images, self.most_values = path, images, most_values
        with opened(path) as file:
            self.info = _kspace_info(file, most_values)
            self.images = path if _target_name(file, self.info) or images is None else images
            self.info = _with_target(file, self.info, most_values)
        if self.images != path:
            self.info = replace(self.info, layout="challenge")
            with _naming(self.images), opened(self.images) as file:
                self.info = _with_target(file, self.info, most_values)

    def read(self, start: int, stop: int) -> Complex64[ndarray, "slice coil height width"]:
        """Return the k-space of slices `start` to `stop`, without the latter."""
        with opened(self.path) as file:
            values = as_complex64(self._numbers(file, KSPACE, (3, 4))[start:stop])
        return values if values.ndim == 4 else values[:, None]

    def image(self, name: str, index: int) -> ndarray:
        """Return one slice of the array `name`: real images [height, width], maps with coils before."""
        with opened(self.path) as file:
            if has(file, name):
                return np.asarray(self._numbers(file, name, (3, 4))[index])
        assert self.images is not None
        with _naming(self.images), opened(self.images) as file:
            if not has(file, name):
                raise UnusableVolume(f"has no '{name}'")
            return np.asarray(self._numbers(file, name, (3, 4))[index])

    def noise(self) -> Complex64[ndarray, "coil sample"]:
        """These layouts hold no noise scan."""
        raise UnusableVolume("holds no noise scan: only ISMRMRD and twix files do")

    def _numbers(self, file: h5py.File, name: str, num_axes: tuple[int, ...]) -> h5py.Dataset:
        return numbers(file, name, num_axes=num_axes, most_values=self.most_values)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the name of the file of images before what is wrong with it."""
    try:
        yield
    except UnusableVolume as error:
        raise UnusableVolume(f"its images, {path}: {error}") from error


def _kspace_info(file: h5py.File, most_values: int) -> KspaceInfo:
    if not has(file, KSPACE):
        names = ", ".join(sorted(file)[:8]) or "nothing"
        raise UnusableVolume(f"has no '{KSPACE}', only {names[:200]}")
    stored = numbers(file, KSPACE, num_axes=(3, 4), most_values=most_values)
    if stored.dtype.kind != "c":
        raise UnusableVolume(f"'{KSPACE}' holds values of type {stored.dtype}, complex ones are needed")
    slices, *coils, height, width = stored.shape
    info = KspaceInfo(
        layout="fastmri" if coils else "fastmri_singlecoil",
        num_slices=slices,
        num_coils=coils[0] if coils else 1,
        size=(height, width),
        measured_columns=(0, width),
        acquisition=text_attribute(file, "acquisition"),
    )
    if has(file, HEADER):
        header = parse_raw_header(text(file, HEADER))
        # Columns of a header that was written for another width would be those of another k-space.
        if header.encoded_size[1] == width:
            info = replace(info, measured_columns=header.measured_columns)
        sides = zip((height, width), header.encoded_size, header.recon_size, strict=False)
        # Without its oversampling a side has the field of the image.
        of_image = [side == recon != encoded for side, encoded, recon in sides]
        mm = [header.recon_fov_mm[axis] if cut else header.encoded_fov_mm[axis] for axis, cut in enumerate(of_image)]
        shown, extent = header.shown((height, width), (mm[0], mm[1]))
        info = replace(info, image_size=shown, field_of_view_mm=extent)
    if has(file, MASK):
        info = replace(info, sampled=_mask(file, width))
    if has(file, MAPS):
        maps = numbers(file, MAPS, num_axes=(4,), most_values=most_values)
        if maps.shape != (slices, info.num_coils, height, width):
            raise UnusableVolume(
                f"'{MAPS}' has shape {maps.shape}, and '{KSPACE}' {stored.shape}: slices, coils and size have to agree"
            )
        info = replace(info, has_maps=True)
    return info


def _mask(file: h5py.File, width: int) -> tuple[bool, ...]:
    # Some write it with axes of one place around.
    stored = numbers(file, MASK, num_axes=(1, 2, 3, 4, 5), most_values=2**20)
    if stored.size != width:
        raise UnusableVolume(f"its mask has shape {stored.shape}, and its k-space {width} columns: they have to agree")
    sampled = np.asarray(stored[...]).ravel() != 0
    if not sampled.any():
        raise UnusableVolume("its mask samples no column")
    check_centre(sampled)
    return tuple(sampled.tolist())


def _target_name(file: h5py.File, info: KspaceInfo) -> str:
    axes = 3 if info.layout == "fastmri_singlecoil" else 4
    return next((name for name in TARGETS[axes] if has(file, name)), "")


def _with_target(file: h5py.File, info: KspaceInfo, most_values: int) -> KspaceInfo:
    """Return `info` with the target of a file, where it has one, and what the file says of its largest value."""
    largest = number_attribute(file, MAX)
    if largest is not None and not (isfinite(largest) and largest > 0):
        raise UnusableVolume(f"its attribute '{MAX}' is {largest}, the largest value of its images has to be above 0")
    info = replace(info, data_range=info.data_range if largest is None else largest)
    if not (name := _target_name(file, info)):
        return info
    stored = numbers(file, name, num_axes=(3,), most_values=most_values)
    if stored.dtype.kind not in "fiu":
        raise UnusableVolume(f"'{name}' holds values of type {stored.dtype}, real ones are needed")
    slices, rows, columns = stored.shape
    if slices != info.num_slices:
        raise UnusableVolume(f"'{name}' has {slices} slices, and its k-space {info.num_slices}: they have to agree")
    height, width = info.size
    if rows > height or columns > width:
        turned = rows <= width and columns <= height
        reason = "the axes of one of them are transposed" if turned else "it has to be the centre of the image"
        raise UnusableVolume(f"'{name}' is {rows}×{columns}, and its k-space {height}×{width}: {reason}")
    return replace(info, target=name, target_size=(rows, columns))
