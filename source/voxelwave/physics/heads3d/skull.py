"""What surrounds the brain: scalp, skull, face with sinuses and orbits, neck."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from voxelwave.physics.heads3d.geometry import Volume, ellipsoid, tube
from voxelwave.physics.heads3d.tissues import Labels, Tissue
from voxelwave.physics.smooth_noise import smooth_noise


def paint_skull(
    labels: Labels, generator: np.random.Generator, x: Volume, y: Volume, z: Volume, cavity: Volume
) -> None:
    """Paint scalp, muscle and skull around the cavity of the skull, and the face and the neck below."""
    size = labels.shape[0]
    fat = float(generator.uniform(0.045, 0.075))
    bone = generator.uniform(0.055, 0.075) * (1 + 0.15 * smooth_noise(generator, size, 5))
    cells = smooth_noise(generator, size, max(8, size // 4))
    labels[cavity + bone + fat > 0] = Tissue.SCALP
    # The face does not reach the upper third of the field of view: leave it out, this is a third of the time.
    low = (slice(None), slice(None), slice(0, 2 * size // 3))
    protected = _paint_face(labels[low], x[low], y[low], z[low], cavity[low] + bone[low], fat, cells[low])
    shell = cavity + bone > 0
    shell[low] &= ~protected
    labels[shell] = Tissue.SKULL
    labels[shell & (np.abs(cavity / bone + 0.5) < 0.2)] = Tissue.DIPLOE


def _paint_face(
    labels: Labels, x: Volume, y: Volume, z: Volume, skull: Volume, fat: float, cells: Volume
) -> Bool[np.ndarray, "depth height width"]:
    """Paint what is below the vault around the `skull` (a depth); return what the skull must not cover."""
    mirrored = np.abs(x)
    face = ellipsoid(x, y, z, (0, 0.30, -0.50), (0.47, 0.50, 0.66), 2.4)
    nose = ellipsoid(x, y, z, (0, 0.80, -0.46), (0.09, 0.14, 0.16))
    neck = np.minimum(0.43 - np.hypot(x, 0.95 * (y + 0.17)), -0.25 - z)
    outer = np.maximum.reduce([skull + fat, face, nose, neck])
    labels[outer > 0] = Tissue.SCALP
    labels[(outer > 0.06) & (skull < -0.5 * fat) & (z < 0.1)] = Tissue.MUSCLE

    facial_bone = (np.abs(face - 0.13) < 0.025) & (y > 0.15) & (z < -0.1)
    canal = tube(x, y, z, ((0, -0.12, -0.55, 0.085), (0, -0.20, -1.3, 0.085)))
    vertebrae = np.where(np.sin(26 * z) > -0.5, canal + 0.09, canal + 0.03)
    vertebrae = np.maximum(vertebrae, ellipsoid(x, y, z, (0, -0.02, -0.95), (0.12, 0.10, 0.33)))
    labels[(facial_bone | (vertebrae > 0)) & (outer > 0.06)] = Tissue.SKULL
    labels[(np.abs(vertebrae - 0.05) < 0.02) & (outer > 0.06)] = Tissue.DIPLOE
    labels[canal > 0] = Tissue.CSF

    airs = np.maximum.reduce(
        [
            ellipsoid(mirrored, y, z, (0.045, 0.50, -0.46), (0.035, 0.26, 0.20)),
            ellipsoid(mirrored, y, z, (0.20, 0.50, -0.50), (0.10, 0.13, 0.13)),
            ellipsoid(mirrored, y, z, (0.06, 0.24, -0.34), (0.07, 0.09, 0.07)),
            ellipsoid(mirrored, y, z, (0.07, 0.77, -0.03), (0.06, 0.035, 0.07)),
            tube(x, y, z, ((0, 0.26, -0.62, 0.05), (0, 0.20, -1.2, 0.06))),
        ]
    )
    # Mastoid and ethmoid: bone full of small cells of air.
    ethmoid = ellipsoid(mirrored, y, z, (0.04, 0.52, -0.21), (0.07, 0.26, 0.10))
    spongy = np.maximum(ethmoid, ellipsoid(mirrored, y, z, (0.41, -0.10, -0.42), (0.12, 0.14, 0.14)))
    spongy = np.minimum(spongy, outer - 0.03)
    labels[((airs > -0.025) & (z > -0.72) & (outer > 0.03)) | (spongy > 0)] = Tissue.SKULL
    labels[(airs > 0) | ((spongy > 0.015) & (cells > -0.3))] = Tissue.AIR

    orbit = tube(mirrored, y, z, ((0.26, 0.66, -0.20, 0.155), (0.12, 0.32, -0.19, 0.04)))
    muscles = tube(mirrored, y, z, ((0.25, 0.60, -0.20, 0.05), (0.13, 0.34, -0.19, 0.04)))
    labels[(np.abs(orbit) < 0.018) & (outer > 0.05)] = Tissue.SKULL
    labels[(orbit > 0) & (outer > 0)] = Tissue.SCALP
    labels[np.abs(muscles) < 0.012] = Tissue.MUSCLE
    labels[ellipsoid(mirrored, y, z, (0.255, 0.62, -0.21), (0.10, 0.10, 0.10)) > 0] = Tissue.EYE
    protected: Bool[np.ndarray, "depth height width"] = (
        ((z < -0.14) & (orbit > 0.02)) | (airs > 0) | (spongy > 0) | (canal > 0)
    )
    return protected
