"""Reads volumes that were reconstructed, here or elsewhere: HDF5 with the dataset `reconstruction`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.hdf5 import MOST_VALUES, has, number_attribute, numbers, opened, text_attribute
from voxelwave.data.kspace.images.writing import RECONSTRUCTION, SAMPLED
from voxelwave.errors import InputError, UnusableVolume


class Reconstructed(NamedTuple):
    """A volume and what its file says of it; texts are "" and numbers nan where it says nothing.

    Attributes:
        sampled: which columns of the k-space it was made of.
        anatomy: "brain", "knee" or "".
        acceleration: the nominal one.
        method: what made it.
        specialist: which network, where there are several.
    """

    images: Float32[ndarray, "slice row column"]
    sampled: Bool[ndarray, " width"] | None
    anatomy: str
    acceleration: float
    method: str
    specialist: str


def read_hdf5(path: Path, *, of: KspaceFile | None = None) -> Reconstructed:
    """Return what `images.writing.write_hdf5` wrote, or another program with the same dataset.

    Raises InputError, one line that names the file, where it cannot be read, holds values that are not finite, or has
    other slices, rows and columns than the target `of` a file of k-space.
    """
    expected = None if of is None else (len(of), *(of.info.target_size or ()))
    try:
        with opened(path) as file:
            if not has(file, RECONSTRUCTION):
                raise UnusableVolume(f"has no '{RECONSTRUCTION}', the images in the layout of the challenge")
            stored = numbers(file, RECONSTRUCTION, num_axes=(3,), most_values=MOST_VALUES)
            if stored.dtype.kind not in "fiu":
                raise UnusableVolume(f"'{RECONSTRUCTION}' holds values of type {stored.dtype}, real ones are needed")
            if of is not None and expected != stored.shape:
                own, other = ("×".join(map(str, shape)) for shape in (stored.shape, expected or ()))
                raise UnusableVolume(
                    f"is {own}, and the target of {of.path} {other}: slices, rows and columns have to agree"
                )
            images = np.asarray(stored[...], dtype=np.float32)
            bad = ~np.isfinite(images).all((1, 2))
            if bad.any():
                raise UnusableVolume(f"slice {int(bad.argmax())} holds NaN or infinite values")
            sampled = None
            if has(file, SAMPLED):
                sampled = np.asarray(numbers(file, SAMPLED, num_axes=(1,), most_values=MOST_VALUES)[...]) != 0
            acceleration = number_attribute(file, "acceleration")
            if acceleration is not None and not 0 < acceleration < math.inf:
                raise UnusableVolume(f"its attribute 'acceleration' is {acceleration}, a number above 0 is needed")
            anatomy, method, specialist = (text_attribute(file, name) for name in ("anatomy", "method", "specialist"))
            return Reconstructed(
                images, sampled, anatomy, math.nan if acceleration is None else acceleration, method, specialist
            )
    except UnusableVolume as error:
        raise InputError(f"{path}: {error}") from error
