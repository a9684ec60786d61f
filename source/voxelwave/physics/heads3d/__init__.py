"""Generated heads as MRI or CT: what the package learns from when there is no data."""

from __future__ import annotations

import numpy as np

from voxelwave.physics.heads3d.brain import paint_cerebrum, paint_core, paint_hindbrain
from voxelwave.physics.heads3d.geometry import cerebral_hull, draw_space, ellipsoid
from voxelwave.physics.heads3d.lesions import paint_lesions
from voxelwave.physics.heads3d.rendering import MRI_CONTRASTS, render_ct, render_mri
from voxelwave.physics.heads3d.skull import paint_skull
from voxelwave.physics.heads3d.tissues import LESIONS, PARENCHYMA, Labels, Tissue
from voxelwave.physics.heads3d.vessels import paint_vessels

__all__ = [
    "HEAD_MM",
    "LESIONS",
    "MRI_CONTRASTS",
    "PARENCHYMA",
    "Labels",
    "Tissue",
    "draw_head",
    "render_ct",
    "render_mri",
]

HEAD_MM = 192.0  # the edge of the cube that a head is drawn in: with it, it is as large as a real one


def draw_head(generator: np.random.Generator, *, size: int) -> Labels:
    """Draw a head, its shape, pose, vessels and lesions, as a label map of `Tissue` values.

    The cube has `size` voxels along each edge; axes run left to right, back to front, bottom to top (RAS).
    Its edge is always the field of view, `HEAD_MM`: a smaller `size` is a coarser head.
    """
    space = draw_space(generator, size=size)
    x, y, z = space.coordinates()
    hull = cerebral_hull(x, y, z)
    fossa = np.maximum(
        ellipsoid(x, y, z, (0, -0.37, -0.36), (0.44, 0.33, 0.25)),
        ellipsoid(x, y, z, (0, 0.0, -0.28), (0.16, 0.17, 0.34)),
    )
    atrophy = float(generator.uniform(0, 1))
    cavity = np.maximum(hull, fossa) + (0.022 + 0.02 * atrophy)
    labels = np.zeros(x.shape, np.uint8)
    paint_skull(labels, generator, x, y, z, cavity)
    labels[cavity > 0] = Tissue.CSF
    paint_hindbrain(labels, generator, x, y, z)
    paint_cerebrum(labels, generator, x, y, z, hull, atrophy=atrophy)
    paint_core(labels, generator, x, y, z, atrophy=atrophy)
    paint_lesions(labels, space, generator)
    paint_vessels(labels, space, generator)
    return labels
