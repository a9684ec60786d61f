"""Scans in the space of a scanner: where one shows something, what two of them both show, and crops at any angle."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Real
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.batches.cuboids import Cuboids, InMemory, InStore
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.modalities import SHOWN, Modality
from voxelwave.data.reading.nifti import read_header
from voxelwave.data.reading.volume import Affine
from voxelwave.data.scaled import read_scaled
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import UnusableVolume
from voxelwave.ops.seeding import numpy_generator

SAMPLED_VOXELS = 2**16
LATTICE = 9  # places along each axis that stand for a whole field of view
BOX_PERCENTILES = (1, 99)  # a bright voxel in the air is no head
ROUNDED = 1e-6  # of a voxel
LEAST_IN_COMMON = 0.5  # of what the one scan shows; aligned scans have nearly all, and parts of a body less


class Shown(NamedTuple):
    """Places where a scan shows something, in its voxels, and the way from these to mm."""

    voxels: Real[ndarray, "place 3"]
    affine: Affine

    @property
    def places_mm(self) -> Float64[ndarray, "place 3"]:
        """The same places in mm."""
        placed: Float64[ndarray, "place 3"] = self.voxels @ self.affine[:3, :3].T + self.affine[:3, 3]
        return placed

    def holds(self, places_mm: Float64[ndarray, "any 3"]) -> Bool[ndarray, " any"]:
        """Tell which places lie in the box, along the axes of the scan, in which it shows something."""
        way = np.linalg.inv(self.affine)
        voxels = places_mm @ way[:3, :3].T + way[:3, 3]
        low, high = np.percentile(self.voxels, BOX_PERCENTILES, axis=0)
        return np.asarray(((voxels >= low - 0.5) & (voxels <= high + 0.5)).all(1))


class PlacedScan(NamedTuple):
    """A scaled scan, and where it shows something."""

    volume: Cuboids
    shown: Shown


def open_scan(file: VolumeFile, modality: Modality) -> PlacedScan:
    """Read a scan whole, in half precision, or open a stored one, of which each crop reads its part.

    Raises UnusableVolume with a short reason.
    """
    if is_stored(file.path):
        stored = StoredVolume(file.path)
        places = stored.foreground if len(stored.foreground) else lattice(stored.grid)
        return PlacedScan(InStore(stored, modality), Shown(places, stored.affine))
    scaled = read_scaled(file.path, modality)
    volume = scaled.volume.half()
    return PlacedScan(InMemory(volume), Shown(foreground(volume), scaled.affine))


def outline(file: VolumeFile) -> Shown:
    """Return the field of view of a file that is not stored, by its header; raises UnusableVolume."""
    grid, affine = read_header(file.path).grid_towards_ras()
    return Shown(lattice(grid), affine)


def lattice(grid: Grid) -> Float64[ndarray, "place 3"]:
    """Return places that lie evenly over a grid, its corners among them."""
    sides = (np.linspace(0, side - 1, LATTICE) for side in grid)
    return np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 3)


def foreground(volume: Float[Tensor, "channel depth height width"]) -> Real[ndarray, "place 3"]:
    """Return those of many random voxels that are not air, the same for every call; raises UnusableVolume for none."""
    grid = tuple(volume.shape[1:])
    places = numpy_generator("foreground", *grid).integers(0, grid, (SAMPLED_VOXELS, 3))
    depth, height, width = torch.from_numpy(places).unbind(1)
    found: Real[ndarray, "place 3"] = places[(volume[:, depth, height, width].amax(0) > SHOWN).numpy()]
    if not len(found):
        raise UnusableVolume("it shows nothing but air")
    return found


def shown_by_both(one: Shown, other: Shown, *, least_mm: Float64[ndarray, "3"]) -> Float64[ndarray, "place 3"]:
    """Return places, in mm, of the one scan that lie where the other shows something: of that which has more such.

    Raises UnusableVolume where these are few, as of scans that were not aligned, or span less than `least_mm`.
    """
    in_common: list[tuple[float, Float64[ndarray, "place 3"]]] = []
    for of, beside in ((one, other), (other, one)):
        places_mm = of.places_mm
        inside = beside.holds(places_mm)
        in_common.append((float(inside.mean()), places_mm[inside]))
    share, places_mm = max(in_common, key=lambda found: found[0])
    if share < LEAST_IN_COMMON:
        raise UnusableVolume(
            f"their affines place them apart: {share:.0%} of what the one shows lies where the other shows anything, "
            f"and {LEAST_IN_COMMON:.0%} has to"
        )
    if ((spanned := np.ptp(places_mm, axis=0)) < least_mm).any():
        raise UnusableVolume(
            f"they both show {_sides(spanned)} mm, and two crops are to have {_sides(least_mm)} mm in common: take "
            f"a smaller crop or a smaller data.pairs.shared"
        )
    return places_mm


def cut_scan(scan: PlacedScan, to_mm: Affine, size: Grid) -> Float[Tensor, "channel view_depth view_height view_width"]:
    """Return a view of `size` voxels, whose places `to_mm` tells, by trilinear interpolation; 0 beyond the scan.

    Where the voxels of the view are larger, means over whole voxels of the scan are interpolated.
    """
    way = np.linalg.inv(scan.shown.affine) @ to_mm
    # 1. The part of the scan that the view lies in, with the neighbours that it is interpolated with.
    corners = np.array([(*corner, 1) for corner in product(*((0, side - 1) for side in size))]) @ way[:3].T
    grid = np.array(scan.volume.grid)
    step = np.clip((np.abs(way[:3, :3]).max(1) + ROUNDED).astype(int), 1, grid)
    start = np.clip(np.floor(corners.min(0)).astype(int) - step, 0, grid - step)
    stop = np.clip(np.ceil(corners.max(0)).astype(int) + 2 * step, start + step, grid)
    part = scan.volume.cut(_grid(start), _grid(stop - start))
    if (step > 1).any():
        # Up to whole blocks, so that no voxel at the end of the scan is dropped.
        missing = -np.array(part.shape[1:]) % step
        padding = [amount for side in missing[::-1] for amount in (0, int(side))]
        part = F.avg_pool3d(F.pad(part[None], padding, mode="replicate"), _grid(step))[0]
    # 2. Where each voxel of the view lies, from -1 to 1 over that part, and whether the scan is there at all.
    places, inside = [], torch.ones(size, dtype=torch.bool)
    for axis, (row, side) in enumerate(zip(way[:3], scan.volume.grid, strict=True)):
        scale, shift = 2 / (step[axis] * part.shape[1 + axis]), 0.5 - start[axis]
        # A linear map of a grid is a sum of three vectors: one for the planes, one for the rows, one for the columns.
        planes, rows, columns = (torch.from_numpy(scale * row[of] * np.arange(size[of])).float() for of in range(3))
        place = (planes + (scale * (row[3] + shift) - 1))[:, None, None] + rows[:, None] + columns
        low, high = (scale * (end + shift) - 1 for end in (-0.5 - ROUNDED, side - 0.5 + ROUNDED))
        inside &= (place >= low) & (place <= high)
        places.append(place)
    # 3. torch counts the last axis first.
    there = torch.stack(places[::-1], -1)
    view: Tensor = F.grid_sample(part[None], there[None], padding_mode="border", align_corners=False)[0]
    return view * inside


def _grid(sides: ndarray) -> Grid:
    depth, height, width = (int(side) for side in sides)
    return depth, height, width


def _sides(sides_mm: ndarray) -> str:
    return " × ".join(f"{side:.0f}" for side in sides_mm)
