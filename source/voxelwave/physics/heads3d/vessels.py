"""The arteries of a generated head: the circle of Willis, what feeds it and what leaves it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from voxelwave.physics.heads3d.geometry import HeadSpace, cerebral_hull
from voxelwave.physics.heads3d.tissues import Labels, Tissue

Points = Float32[np.ndarray, "points 3"]

# The circle of Willis and what feeds it, right side: nodes (x, y, z) from the neck upwards.
_CAROTID = ((0.20, -0.02, -1.2), (0.20, 0.0, -0.62), (0.13, 0.06, -0.50), (0.11, 0.16, -0.42),
            (0.09, 0.22, -0.33), (0.10, 0.12, -0.27), (0.11, 0.17, -0.20))  # fmt: skip
_MIDDLE = ((0.11, 0.17, -0.20), (0.20, 0.19, -0.16), (0.29, 0.18, -0.15), (0.345, 0.14, -0.11))
_ANTERIOR = ((0.11, 0.17, -0.20), (0.02, 0.24, -0.16), (0.012, 0.38, -0.04), (0.012, 0.43, 0.08),
             (0.012, 0.33, 0.23), (0.012, 0.05, 0.30), (0.012, -0.25, 0.27))  # fmt: skip
_POSTERIOR = ((0.0, 0.135, -0.24), (0.09, 0.09, -0.22), (0.15, -0.03, -0.20), (0.13, -0.17, -0.15),
              (0.10, -0.36, -0.08), (0.08, -0.58, -0.02))  # fmt: skip
_COMMUNICATING = ((0.105, 0.15, -0.23), (0.09, 0.09, -0.22))
_VERTEBRAL = ((0.13, -0.2, -1.2), (0.13, -0.16, -0.72), (0.06, -0.02, -0.58), (0.0, 0.075, -0.46))
_BASILAR = ((0.0, 0.075, -0.46), (0.0, 0.145, -0.36), (0.0, 0.135, -0.24))


def paint_vessels(labels: Labels, space: HeadSpace, generator: np.random.Generator) -> None:
    """Paint the circle of Willis, branches over the cortex and sometimes an aneurysm into `labels`."""
    trunks: list[tuple[Points, float]] = [(_bend(_BASILAR, 1, generator), 0.020)]
    for side in (-1, 1):
        for nodes, radius in (
            (_CAROTID, 0.025),
            (_MIDDLE, 0.019),
            (_ANTERIOR, 0.015),
            (_POSTERIOR, 0.015),
            (_COMMUNICATING, 0.010),
            (_VERTEBRAL, 0.018),
        ):
            # Vessels of the circle vary between people: some are thin, some are missing.
            if nodes is _COMMUNICATING and generator.uniform() < 0.4:
                continue
            trunks.append((_bend(nodes, side, generator), radius * generator.uniform(0.8, 1.2)))
    for path, radius in trunks:
        _stamp(labels, space, path, np.linspace(radius, 0.75 * radius, len(path)), Tissue.VESSEL)
    # Branches leave the far third of the arteries that reach the brain, and fork.
    feeders = [(path, radius) for path, radius in trunks if path[-1, 2] > -0.15]
    starts = [(path[generator.integers(2 * len(path) // 3, len(path))], r) for path, r in feeders for _ in range(2)]
    tips, widths = np.array([tip for tip, _ in starts]), np.array([0.7 * r for _, r in starts])
    # At few voxels an artery is as thick as a voxel, and the second fork would fill the space.
    for _ in range(2 if space.size >= 64 else 1):
        paths = _walk(tips, generator)
        for path, radius in zip(paths, widths, strict=True):
            _stamp(labels, space, path, np.full(len(path), radius), Tissue.VESSEL)
        tips, widths = np.repeat(paths[:, -1], 2, axis=0), np.repeat(0.75 * widths, 2)
    if generator.uniform() < 0.4:
        # Where arteries fork: tip of the basilar, end of a carotid or a middle cerebral, the anterior.
        fork = np.array((_BASILAR[-1], _CAROTID[-1], _MIDDLE[-1], _ANTERIOR[1])[generator.integers(4)])
        bulge = generator.uniform(0.030, 0.055)
        towards = generator.standard_normal(3)
        dome = fork * (generator.choice([-1, 1]), 1, 1) + 0.8 * bulge * towards / np.linalg.norm(towards)
        _stamp(labels, space, dome[None].astype(np.float32), np.array([bulge]), Tissue.ANEURYSM)


def _bend(nodes: tuple[tuple[float, ...], ...], side: int, generator: np.random.Generator) -> Points:
    """Return a smooth path near `nodes`, mirrored to `side`; its ends stay, so that trunks meet."""
    points = np.array(nodes) * (side, 1, 1)
    points[1:-1] += generator.normal(0, 0.008, points[1:-1].shape)
    ends = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, 24, endpoint=False)[:, None]
    pieces = []
    # Catmull-Rom: passes through every node, with a continuous tangent.
    for a, b, c, d in zip(ends, ends[1:], ends[2:], ends[3:], strict=False):
        pieces.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    return np.concatenate([*pieces, points[-1:]]).astype(np.float32)


def _walk(starts: Points, generator: np.random.Generator, *, steps: int = 24) -> Float32[np.ndarray, "paths nodes 3"]:
    """Walk from every start outwards and along the surface of the cerebrum."""
    heading = generator.standard_normal(starts.shape) * (0.4, 1, 1)
    heading[:, 0] += np.where(np.abs(starts[:, 0]) > 0.1, 1.2 * np.sign(starts[:, 0]), 0)
    heading[:, 2] += 0.5
    point = starts.astype(np.float64)
    path = [point]
    for _ in range(steps):
        heading = heading / np.linalg.norm(heading, axis=1, keepdims=True) + generator.normal(0, 0.16, heading.shape)
        point = point + 0.022 * heading / np.linalg.norm(heading, axis=1, keepdims=True)
        # Arteries run in the space over the cortex: one that leaves it is drawn back and turns along it.
        around = point[:, None] + 0.01 * np.concatenate([np.zeros((1, 3)), np.eye(3)])
        depths = cerebral_hull(around[..., 0], around[..., 1], around[..., 2])
        inwards = depths[:, 1:] - depths[:, :1]
        inwards /= np.maximum(np.linalg.norm(inwards, axis=1, keepdims=True), 1e-6)
        point = point + np.maximum(0.01 - depths[:, :1], 0) * inwards
        leaving = np.minimum((heading * inwards).sum(1, keepdims=True), 0)
        heading = heading - np.where(depths[:, :1] < 0.01, leaving, 0) * inwards
        path.append(point)
    nodes = np.stack(path, axis=1)
    # Four points a step, so that the stamped balls overlap.
    t = np.linspace(0, 1, 4, endpoint=False)[:, None]
    fine = nodes[:, :-1, None] * (1 - t) + nodes[:, 1:, None] * t
    return fine.reshape(len(starts), -1, 3).astype(np.float32)


def _stamp(labels: Labels, space: HeadSpace, path: Points, radii: np.ndarray, tissue: Tissue) -> None:
    """Paint balls along a path; none is so small that it would fall between the voxels."""
    centres = space.voxels(path)
    reach_vox = np.maximum(radii * (space.size / 2), 0.62)
    widest = int(np.ceil(reach_vox.max()))
    step = np.arange(-widest, widest + 1)
    ball = np.stack(np.meshgrid(step, step, step, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = np.rint(centres)[:, None].astype(int) + ball
    near = np.linalg.norm(voxels - centres[:, None], axis=-1) <= reach_vox[:, None]
    inside = near & (voxels >= 0).all(-1) & (voxels < space.size).all(-1)
    i, j, k = voxels[inside].T
    labels[i, j, k] = tissue
