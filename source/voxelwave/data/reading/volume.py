"""A volume as read from any format: values, axes towards RAS, and where its voxels lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import nibabel
import numpy as np
from jaxtyping import Float32, Float64, Shaped
from nibabel import orientations
from nibabel.affines import voxel_sizes
from numpy import ndarray

from voxelwave.contracts import Grid
from voxelwave.errors import UnusableVolume

SMALLEST_SIDE = 8
MOST_VOXELS = 1e9  # four times a CT of a whole body at 1 mm; more would end the process for want of memory
AT_SPACING = "at the spacing asked for; is that of its header in mm?"
SAME_SPACING_MM = 1e-3
BLOCK_SIDE = 32
POSSIBLE_SPACING_MM = (0.01, 100.0)
RIGHT_ANGLE = 1e-3  # cosine; headers round directions to about 1e-5

Spacing = float | tuple[float, float, float]
Affine = Float64[ndarray, "4 4"]


@dataclass(frozen=True, eq=False)
class VolumeInfo:
    """What the header of a file says of its volume.

    Attributes:
        shape: in the order of storage, with all axes.
        affine: voxel to mm, RAS+, in the order of storage.
        dtype: the type of a voxel.
        placement: of NIfTI, the fields of the header from which viewers compute where the volume lies.
        note: what had to be assumed or mended, "" for nothing.
    """

    shape: tuple[int, ...]
    affine: Affine
    dtype: str
    placement: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def grid(self) -> Grid:
        """The voxels along the three axes of space, in the order of storage."""
        depth, height, width = self.shape[:3]
        return depth, height, width

    def grid_towards_ras(self) -> tuple[Grid, Affine]:
        """Return grid and affine of the same volume with its axes as close to RAS as flips and swaps bring them."""
        steps = orientations.io_orientation(self.affine)
        sides = dict(zip(steps[:, 0].astype(int).tolist(), self.grid, strict=True))
        return (sides[0], sides[1], sides[2]), self.affine @ orientations.inv_ornt_aff(steps, self.grid)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance of neighbours along each axis of storage."""
        return spacing_of(self.affine)

    @property
    def orientation(self) -> str:
        """Where each axis of storage leads, such as "LPS"; "?" for one that leads nowhere."""
        codes = nibabel.aff2axcodes(self.affine) if np.isfinite(self.affine).all() else (None,) * 3
        return "".join(code or "?" for code in codes)

    def frames(self, channels: int = 3) -> int:
        """The number of volumes that a file of four axes holds; channels in the last axis are one volume."""
        more = without_trailing_ones(self.shape)[3:]
        return more[0] if len(more) == 1 and more[0] != channels else 1

    def problem(self, channels: int = 3, *, several: bool = False) -> str | None:
        """Say why the file is not a volume of one or of `channels` channels (or `several` volumes), or None."""
        if self.dtype in ("RGB", "complex"):
            return f"its voxels are {self.dtype} values, one real number each is needed"
        shape = without_trailing_ones(self.shape)
        if len(shape) < 3 or min(shape[:3]) < SMALLEST_SIDE:
            return f"too small: each of three axes needs {SMALLEST_SIDE} voxels, got shape {self.shape}"
        if (voxels := math.prod(shape)) > MOST_VOXELS:
            return f"{voxels:.2g} voxels, and at most {MOST_VOXELS:.2g} are read: the header is damaged, or cut it"
        more = shape[3:]
        one = not more or (more[-1] == channels and more[:-1] in ((), (1,)))
        if not one and not (several and len(more) == 1):
            return f"{len(shape)} axes: one volume a file is needed, got shape {self.shape}"
        if "?" in self.orientation:
            return "its affine is singular, so neither orientation nor spacing is known"
        low, high = POSSIBLE_SPACING_MM
        if not all(low <= side <= high for side in self.spacing_mm):
            spacing = " × ".join(f"{side:.3g}" for side in self.spacing_mm)
            return f"its spacing of {spacing} mm cannot be: the header is damaged, or not in mm"
        return None


class Volume(NamedTuple):
    """Values [D, H, W] or [D, H, W, channels], axes to right, anterior, superior.

    Attributes:
        affine: voxel to mm.
        source: the header of the file that the values were read from, None where they were computed.
    """

    array: Float32[ndarray, "..."]
    affine: Affine
    source: VolumeInfo | None = None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance of neighbours along each axis."""
        return spacing_of(self.affine)


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Return the lengths of the steps that `affine` takes along the axes, in mm."""
    first, second, third = (float(side) for side in voxel_sizes(affine))
    return first, second, third


def towards_ras(
    stored: Shaped[ndarray, "..."], affine: Affine, *, slope: float = 1.0, intercept: float = 0.0
) -> Volume:
    """Return values in float32 with the axes as close to RAS as flips and swaps bring them."""
    steps = orientations.io_orientation(affine)
    # Move the axes in the type as stored and scale in float32: nibabel itself would go through float64.
    array = _in_order(orientations.apply_orientation(stored, steps))
    if (slope, intercept) != (1, 0):
        array *= np.float32(slope)
        array += np.float32(intercept)
    return Volume(array, affine @ orientations.inv_ornt_aff(steps, stored.shape[:3]))


def one_of(stored: Shaped[ndarray, "..."], frame: int | None) -> Shaped[ndarray, "..."]:
    """Return volume `frame` of a file of several, or its only one, without the axes of one voxel behind the others.

    `VolumeInfo.problem` must have said that the file is usable.
    """
    stored = stored.reshape(without_trailing_ones(stored.shape))
    if stored.ndim == 5:
        stored = stored[:, :, :, 0]
    return stored if frame is None or stored.ndim == 3 else stored[..., frame]


def _in_order(turned: Shaped[ndarray, "..."]) -> Float32[ndarray, "..."]:
    """Copy to float32 in C order, by blocks: a whole plane of turned axes touches more memory than a cache holds."""
    array = np.empty(turned.shape, dtype=np.float32)
    for first in range(0, turned.shape[0], BLOCK_SIDE):
        for second in range(0, turned.shape[1], BLOCK_SIDE):
            block = slice(first, first + BLOCK_SIDE), slice(second, second + BLOCK_SIDE)
            array[block] = turned[block]
    return array


def is_sheared(affine: Affine) -> bool:
    """Tell whether the axes are not at right angles, as where the gantry of a CT was tilted."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > RIGHT_ANGLE)


def resample(volume: Volume, spacing_mm: Spacing | None) -> Volume:
    """Resample by trilinear interpolation to `spacing_mm` and right angles, unless they are so already.

    None keeps the spacing; sheared axes are put at right angles all the same.
    Raises UnusableVolume for more than `MOST_VOXELS`.
    """
    target = volume.spacing_mm if spacing_mm is None else three(spacing_mm)
    if np.allclose(volume.spacing_mm, target, rtol=0, atol=SAME_SPACING_MM) and not is_sheared(volume.affine):
        return volume
    if problem := too_many_voxels(volume.array.shape[:3], volume.spacing_mm, target):
        raise UnusableVolume(problem)
    # Importing MONAI takes seconds, and most data sets are stored at their spacing already.
    from monai.data import MetaTensor
    from monai.transforms import Spacing as Resampler

    single = volume.array.ndim == 3
    channels_first = volume.array[None] if single else np.ascontiguousarray(np.moveaxis(volume.array, -1, 0))
    resampler = Resampler(pixdim=target, mode="bilinear", padding_mode="border")
    resampled = resampler(MetaTensor(channels_first, affine=volume.affine))
    values = resampled.as_tensor().float().numpy()
    values = values[0] if single else np.ascontiguousarray(np.moveaxis(values, 0, -1))
    return Volume(values, np.asarray(resampled.affine, dtype=np.float64), volume.source)


def too_many_voxels(grid: Sequence[int], spacing_mm: Sequence[float], asked_mm: Sequence[float]) -> str | None:
    """Say that a volume would have more than `MOST_VOXELS` at the spacing asked for, or None."""
    voxels = math.prod(side * own / asked for side, own, asked in zip(grid, spacing_mm, asked_mm, strict=True))
    return f"it would have {voxels:.2g} voxels {AT_SPACING}" if voxels > MOST_VOXELS else None


def three(spacing_mm: float | Sequence[float]) -> tuple[float, float, float]:
    """Return three spacings, where one is given three times that one."""
    if isinstance(spacing_mm, int | float):
        return (float(spacing_mm),) * 3
    first, second, third = spacing_mm
    return first, second, third


def without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the axes of length 1 that NIfTI files carry behind the three of space."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
