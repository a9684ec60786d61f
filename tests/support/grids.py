"""Grids of voxels that lie in space as those of scanners do."""

import numpy as np


def oblique_affine(seed, *, spacing_mm=(1.0, 1.3, 0.8)):
    """A rotated, anisotropic grid somewhere."""
    generator = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(np.eye(3) + 0.3 * generator.standard_normal((3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turned * np.array(spacing_mm)
    affine[:3, 3] = generator.uniform(-3, 3, 3)
    return affine
