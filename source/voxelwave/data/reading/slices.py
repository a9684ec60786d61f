"""Stacks of parallel slices: the affine from their positions, and the even gaps that a volume needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray

from voxelwave.data.reading.volume import Affine, is_sheared

SAME_PLACE_MM = 0.01
EVEN_WITHIN_MM = 0.1  # scanners round positions to about this
FINEST_GAP_MM = 0.5
LARGEST_GAP_MM = 15.0  # thick slices of the head lie up to 10 apart: beyond are parts that were never scanned
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Steps = Float64[ndarray, "2 3"]
Positions = Float64[ndarray, "slice 3"]


class Stack(NamedTuple):
    """Slices in order: `positions_mm` of their first voxels, `steps_mm` to the next column and the next row, LPS.

    The slice axis leads from position to position and not along the normal: where the gantry of a CT was tilted, the
    slices are shifted along each other.
    """

    positions_mm: Positions
    steps_mm: Steps

    @property
    def heights_mm(self) -> Float64[ndarray, "slice"]:
        """How far each slice lies from the first, along the normal."""
        return heights(self.positions_mm - self.positions_mm[0], self.steps_mm)

    @property
    def gaps_mm(self) -> Float64[ndarray, "gap"]:
        """The distances of neighbouring slices."""
        return np.diff(self.heights_mm)

    @property
    def even(self) -> bool:
        """Whether each slice lies where even gaps would put it, by the precision that positions have."""
        heights_mm = self.heights_mm
        even = np.linspace(0.0, heights_mm[-1], len(heights_mm))
        return bool(np.abs(heights_mm - even).max() <= EVEN_WITHIN_MM)

    @property
    def number(self) -> int:
        """The number of slices once their gaps are even.

        Uneven gaps become the smallest one, which blurs the closest slices least and falls on every slice where only
        some are missing. It is not made finer than 0.5 mm (or the median): a single pair of slices that lie close
        would else multiply all others.
        """
        if self.even:
            return len(self.positions_mm)
        gaps = self.gaps_mm
        gap = max(float(gaps.min()), min(FINEST_GAP_MM, float(np.median(gaps))))
        return round(float(self.heights_mm[-1]) / gap) + 1

    @property
    def affine(self) -> Affine:
        """From (column, row, slice at even gaps) to mm, RAS+."""
        first, last = self.positions_mm[0], self.positions_mm[-1]
        affine = np.eye(4)
        affine[:3, :2] = self.steps_mm.T
        affine[:3, 2] = (last - first) / (self.number - 1)
        affine[:3, 3] = first
        return LPS_TO_RAS @ affine

    def problem(self) -> str | None:
        """Say why the slices make no volume, or None."""
        if len(self.positions_mm) == 1:
            return "a single slice"
        gaps = self.gaps_mm
        if gaps.min() < SAME_PLACE_MM:
            return "several images at the same position, and no tag parts them into volumes"
        if gaps.max() > LARGEST_GAP_MM:
            return f"a hole of {gaps.max():.0f} mm between two of its {len(gaps) + 1} slices"
        share = (self.heights_mm / self.heights_mm[-1])[:, None]
        line = self.positions_mm[0] + share * (self.positions_mm[-1] - self.positions_mm[0])
        beside = float(np.linalg.norm(self.positions_mm - line, axis=1).max())
        if beside > np.linalg.norm(self.steps_mm, axis=1).max():
            return f"its slices do not lie on one line: {beside:.1f} mm beside it"
        return None

    def note(self) -> str:
        """Say what is unusual about the gaps and about the axis of the slices, or nothing."""
        notes = []
        if not self.even:
            low, high = self.gaps_mm.min(), self.gaps_mm.max()
            gap = self.heights_mm[-1] / (self.number - 1)
            notes.append(f"slices {low:.2f} to {high:.2f} mm apart, interpolated to {gap:.2f} mm")
        if is_sheared(self.affine):
            step = self.positions_mm[-1] - self.positions_mm[0]
            tilt = np.degrees(np.arccos(self.heights_mm[-1] / np.linalg.norm(step)))
            notes.append(f"slice axis tilted by {tilt:.1f}°")
        return "; ".join(notes)

    def at_even_gaps(self, slices: Float32[ndarray, "slice row column"]) -> Float32[ndarray, "number row column"]:
        """Interpolate linearly between neighbouring slices where their gaps are uneven."""
        if self.even:
            return slices
        heights_mm = self.heights_mm
        wanted_mm = np.linspace(0.0, heights_mm[-1], self.number)
        above = np.searchsorted(heights_mm, wanted_mm).clip(1, len(heights_mm) - 1)
        shares = ((wanted_mm - heights_mm[above - 1]) / self.gaps_mm[above - 1]).astype(np.float32)
        even = np.empty((len(wanted_mm), *slices.shape[1:]), np.float32)
        for index, (upper, share) in enumerate(zip(above, shares, strict=True)):
            even[index] = slices[upper - 1] + share * (slices[upper] - slices[upper - 1])
        return even


def heights(positions_mm: Positions, steps_mm: Steps) -> Float64[ndarray, "slice"]:
    """Return how far positions lie along the normal of the slices."""
    normal = np.cross(steps_mm[0], steps_mm[1])
    return np.asarray(positions_mm @ (normal / np.linalg.norm(normal)), dtype=np.float64)
