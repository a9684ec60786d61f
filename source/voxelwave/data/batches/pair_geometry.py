"""Where two views of one head lie: each has its own crop, turn, stretch and spacing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from voxelwave.contracts import Grid

# Draws two places, in mm, that a view may be centred on.
Places = Callable[[np.random.Generator], Float64[ndarray, "2 3"]]
ATTEMPTS = 20  # to find two crops that share enough of a head


@dataclass(frozen=True)
class Geometry:
    """How a view may differ from the head that it shows.

    Attributes:
        spacing_mm: of a view, before it is stretched.
        degrees: about each axis, at most.
        log_stretch: of the spacing along each axis, at most.
        shared: of a crop's sides that two crops of one head have in common, at least, before they are turned and
            stretched, which takes some of it from some pairs.
    """

    crop_size: Grid
    spacing_mm: float = 3.0
    degrees: float = 10.0
    log_stretch: float = 0.15
    shared: float = 0.5

    @property
    def side_mm(self) -> Float64[ndarray, "3"]:
        """The sides of a crop that is not stretched."""
        return self.spacing_mm * np.array(self.crop_size, dtype=np.float64)

    @property
    def shared_mm(self) -> Float64[ndarray, "3"]:
        """What two crops of one head have in common of each side, at least."""
        return self.shared * self.side_mm


def draw_affines(draw_places: Places, geometry: Geometry, generator: np.random.Generator) -> Iterator[ndarray]:
    """Yield the way from voxels to mm of two crops, both around drawn places, that share what `geometry` says."""
    for attempt in range(ATTEMPTS):
        centres = draw_places(generator)
        # The last attempt shows the same place twice: where a crop is as large as the head any two would do.
        if attempt == ATTEMPTS - 1:
            centres[1] = centres[0]
        if np.all(np.abs(centres[0] - centres[1]) <= (1 - geometry.shared) * geometry.side_mm):
            break
    for centre in centres:
        angles = np.radians(generator.uniform(-geometry.degrees, geometry.degrees, 3))
        spacing = geometry.spacing_mm * np.exp(generator.uniform(-geometry.log_stretch, geometry.log_stretch, 3))
        linear = rotation(angles) * spacing
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = centre - linear @ ((np.array(geometry.crop_size) - 1) / 2)
        yield affine


def rotation(angles: ndarray) -> ndarray:
    """Return the rotation about the first, then the second, then the third axis, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix
