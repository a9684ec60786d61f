"""Where every voxel lies in a generated head, and the shapes that its anatomy is made of.

Anatomy is written once in head coordinates, where 1 is half of the field of view (96 mm): x to the
right, y to the front, z upwards. A shape is a signed distance, positive inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from voxelwave.physics.smooth_noise import smooth_noise

Volume = Float32[np.ndarray, "depth height width"]
Nodes = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class HeadSpace:
    """Where every voxel lies in the head: the affine pose of the field of view and a smooth deformation."""

    pose: Float32[np.ndarray, "3 4"]
    deformation: Float32[np.ndarray, "3 depth height width"]

    @property
    def size(self) -> int:
        """Voxels along each axis."""
        return int(self.deformation.shape[-1])

    def coordinates(self) -> tuple[Volume, Volume, Volume]:
        """Return x, y, z of every voxel."""
        axis = (2 * np.arange(self.size, dtype=np.float32) + 1) / self.size - 1
        i, j, k = axis[:, None, None], axis[None, :, None], axis[None, None, :]
        x, y, z = (
            (row[0] * i + row[3]) + row[1] * j + row[2] * k + shift
            for row, shift in zip(self.pose, self.deformation, strict=True)
        )
        return x, y, z

    def voxels(self, points: Float32[np.ndarray, "points 3"]) -> Float32[np.ndarray, "points 3"]:
        """Return voxel positions of head coordinates: `coordinates` inverted by fixed-point iteration."""
        inverse = np.linalg.inv(self.pose[:, :3])
        voxels = np.zeros_like(points)
        shift = np.zeros_like(points)
        for _ in range(4):
            voxels = ((points - shift - self.pose[:, 3]) @ inverse.T + 1) * (self.size / 2) - 0.5
            shift = np.stack(
                [ndimage.map_coordinates(d, voxels.T, order=1, mode="nearest") for d in self.deformation],
                axis=1,
            )
        return voxels


def draw_space(generator: np.random.Generator, *, size: int) -> HeadSpace:
    """Draw the size and pose of a head, and how it departs from the common shape."""
    angles = generator.normal(0, (0.05, 0.035, 0.05)).clip(-0.12, 0.12)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        plane = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        plane[first, first] = plane[second, second] = np.cos(angle)
        plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ plane
    zoom = generator.uniform(0.93, 1.0) * generator.uniform(0.96, 1.05, 3)
    shift = generator.uniform(-0.03, 0.03, 3)
    pose = np.concatenate([np.diag(zoom) @ rotation, shift[:, None]], axis=1).astype(np.float32)
    deformation = np.stack(
        [0.016 * smooth_noise(generator, size, 3) + 0.008 * smooth_noise(generator, size, 8) for _ in range(3)]
    )
    return HeadSpace(pose, deformation)


def ellipsoid(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    centre: tuple[float, ...],
    radii: tuple[float, ...],
    power: float = 2,
) -> np.ndarray:
    """Return the depth below the surface of a superellipsoid, along the ray from its centre."""
    parts = [np.abs(p - c) for p, c in zip((x, y, z), centre, strict=True)]
    gauge = sum((p / r) ** power for p, r in zip(parts, radii, strict=True))
    gauge = np.sqrt(gauge) if power == 2 else gauge ** (1 / power)
    length = np.sqrt(parts[0] ** 2 + parts[1] ** 2 + parts[2] ** 2)
    depth: np.ndarray = length / np.maximum(gauge, 1e-3) * (1 - gauge)
    return depth


def tube(x: np.ndarray, y: np.ndarray, z: np.ndarray, nodes: Nodes) -> np.ndarray:
    """Return the depth inside a tube whose radius changes linearly from node to node."""
    depth = np.full(x.shape, -np.inf, np.float32)
    for (ax, ay, az, ar), (bx, by, bz, br) in pairwise(nodes):
        dx, dy, dz = bx - ax, by - ay, bz - az
        along = ((x - ax) * dx + (y - ay) * dy + (z - az) * dz) / (dx * dx + dy * dy + dz * dz)
        along = along.clip(0, 1)
        distance = np.sqrt((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 + (z - az - along * dz) ** 2)
        depth = np.maximum(depth, ar + along * (br - ar) - distance)
    return depth


def bounding_box(inside: Bool[np.ndarray, "depth height width"]) -> tuple[slice, slice, slice]:
    """Return the slices that hold every voxel of `inside`, of which there is at least one."""
    seen = [np.flatnonzero(inside.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    first, second, third = (slice(int(where[0]), int(where[-1]) + 1) for where in seen)
    return first, second, third


def sheet(distance: np.ndarray, *beyond: np.ndarray) -> np.ndarray:
    """Return the distance to a surface that ends where one of `beyond` is positive; `distance` is without that end."""
    excess = np.maximum.reduce([np.zeros_like(distance), *beyond])
    ended: np.ndarray = np.sqrt(distance**2 + excess**2)
    return ended


def cerebral_hull(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the depth below the smooth outer surface of the cerebrum."""
    depth = ellipsoid(x, y, z, (0, 0, 0.12), (0.58, 0.73, 0.58), 2.3)
    temporal = np.exp(-(((y - 0.12) / 0.26) ** 2) - ((np.abs(x) - 0.33) / 0.18) ** 2)
    base = -0.11 - 0.27 * temporal - 0.08 * np.abs(x)
    floor = 0.9 * (z - base)
    # A smooth minimum, so that the rim of the base is round.
    blend = (0.5 + 0.5 * (floor - depth) / 0.1).clip(0, 1)
    hull: np.ndarray = floor + (depth - floor) * blend - 0.1 * blend * (1 - blend)
    return hull
