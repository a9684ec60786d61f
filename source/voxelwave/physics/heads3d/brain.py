"""The brain: cortex folded around white matter, nuclei, ventricles, cerebellum and brain stem."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from voxelwave.physics.heads3d.geometry import Volume, bounding_box, ellipsoid, sheet, tube
from voxelwave.physics.heads3d.tissues import Labels, Tissue
from voxelwave.physics.smooth_noise import band_noise, smooth_noise

# Lateral ventricle, right side: (x, y, z, radius) along the frontal horn, body, atrium and occipital horn.
_VENTRICLE_BODY = (
    (0.085, 0.35, 0.05, 0.030),
    (0.080, 0.22, 0.11, 0.047),
    (0.075, 0.00, 0.17, 0.038),
    (0.105, -0.20, 0.14, 0.043),
    (0.190, -0.34, 0.05, 0.055),
    (0.200, -0.54, 0.00, 0.022),
)
_TEMPORAL_HORN = ((0.190, -0.34, 0.05, 0.045), (0.290, -0.20, -0.14, 0.026), (0.275, 0.06, -0.21, 0.020))
# Nuclei, right side: centre, radii.
_NUCLEI = (
    ((0.145, 0.22, 0.08), (0.040, 0.10, 0.075)),
    ((0.240, 0.10, 0.02), (0.048, 0.16, 0.090)),
    ((0.175, 0.05, 0.00), (0.036, 0.09, 0.050)),
    ((0.090, -0.09, 0.05), (0.068, 0.13, 0.075)),
)


def paint_hindbrain(labels: Labels, generator: np.random.Generator, x: Volume, y: Volume, z: Volume) -> None:
    """Paint the cerebellum with its leaves, the brain stem, the cord and the fourth ventricle."""
    # The noise fills the whole volume; everything else is worked out in the box below the cerebrum only.
    bend = 0.12 * smooth_noise(generator, labels.shape[0], 6)
    box = bounding_box((np.abs(x) < 0.45) & (y < 0.2) & (z < 0.05))
    labels, x, y, z, bend = labels[box], x[box], y[box], z[box], bend[box]
    mirrored = np.abs(x)
    lobes = np.maximum(
        ellipsoid(mirrored, y, z, (0.19, -0.37, -0.36), (0.24, 0.31, 0.235), 2.3),
        ellipsoid(x, y, z, (0, -0.36, -0.34), (0.12, 0.26, 0.225)),
    )
    # Leaves fan out from the fourth ventricle: stripes of equal angle around it, bent by noise.
    angle = np.arctan2(z + 0.36, -(y + 0.12)) + bend
    leaves = np.sin(22 * angle + 3 * mirrored)
    labels[lobes > 0] = Tissue.CEREBELLUM
    labels[lobes > 0.075 + 0.03 * leaves] = Tissue.WHITE_MATTER
    labels[(lobes > 0) & (lobes < 0.05) & (leaves < -0.9)] = Tissue.CSF
    stem = tube(
        x,
        y,
        z,
        ((0, -0.02, -0.08, 0.085), (0, 0.02, -0.32, 0.125), (0, -0.09, -0.55, 0.065), (0, -0.20, -1.3, 0.05)),
    )
    labels[stem > 0] = Tissue.BRAIN_STEM
    labels[ellipsoid(x, y, z, (0, -0.145, -0.35), (0.055, 0.04, 0.09)) > 0] = Tissue.VENTRICLE


def paint_cerebrum(
    labels: Labels,
    generator: np.random.Generator,
    x: Volume,
    y: Volume,
    z: Volume,
    hull: Volume,
    *,
    atrophy: float,
) -> None:
    """Paint the cortical ribbon and the white matter: what is near the hull or near a sulcus is grey."""
    size = labels.shape[0]
    voxel = 2 / size
    box = bounding_box(hull > -2 * voxel)
    wobble = [0.045 * smooth_noise(generator, size, 9)[box] for _ in range(3)]
    reach = 0.17 + 0.05 * smooth_noise(generator, size, 10)[box]
    labels, x, y, z, hull = labels[box], x[box], y[box], z[box], hull[box]
    mirrored = np.abs(x)
    # 1. Sulci are the zero set of band-limited noise, read where a ray from the middle of the hemisphere
    #    leaves it, so that they stand upright on the surface. Both hemispheres read the same noise; the
    #    deformation of the head and the wobble make them differ.
    gauge = np.sqrt(((mirrored - 0.2) / 0.38) ** 2 + (y / 0.73) ** 2 + ((z - 0.1) / 0.55) ** 2)
    outwards = 0.35 + 0.65 / np.maximum(gauge, 0.2)
    wavelength = max(generator.uniform(0.22, 0.26), 7 * voxel)
    noise = band_noise(generator, 64, cycles=2.4 / wavelength)
    where = [(p * outwards + w) * (64 / 2.4) for p, w in zip((mirrored - 0.2, y, z - 0.1), wobble, strict=True)]
    folds = ndimage.map_coordinates(noise, where, order=1, mode="grid-wrap")
    slope = np.sqrt(sum(g**2 for g in np.gradient(folds, voxel)))
    # 2. Fissures of every brain: between the hemispheres down to the callosum, the Sylvian with the insula.
    callosum = ellipsoid(0 * x, y, z, (0, -0.02, 0.02), (1, 0.42, 0.21))
    midline = sheet(mirrored, np.where(callosum > 0, 0.21 - np.hypot((y + 0.02) / 2, z - 0.02), 0))
    bent, height = mirrored + 0.5 * wobble[0], z + 0.03 + 0.33 * y + 0.6 * wobble[2]
    lateral = sheet(0.94 * height, 0.35 - bent, y - 0.40, -0.34 - y)
    insula = sheet(bent - 0.35, np.abs(height) - 0.10, y - 0.28, -0.2 - y)
    # 3. A sulcus reaches only so deep, less so between the hemispheres, and spares callosum and nuclei.
    surface = np.minimum(hull, midline + 0.07)
    sulci = sheet(np.abs(folds) / (slope + 1.5), surface - reach, np.minimum(callosum + 0.03, 0.3 - mirrored))
    width = 0.006 + 0.012 * atrophy
    fissures = np.minimum.reduce([midline + 0.002, lateral - 0.004, insula - 0.002])
    depth = np.minimum.reduce([hull, sulci - width, fissures - width])
    # 4. The ribbon.
    thickness = max(generator.uniform(0.032, 0.038), 1.2 * voxel)
    brain = hull > 0
    labels[brain] = Tissue.CSF
    labels[brain & (depth > 0)] = Tissue.GREY_MATTER
    labels[brain & (depth > thickness)] = Tissue.WHITE_MATTER


def paint_core(
    labels: Labels, generator: np.random.Generator, x: Volume, y: Volume, z: Volume, *, atrophy: float
) -> None:
    """Paint nuclei, hippocampi and ventricles; left and right differ in size."""
    core = np.nonzero((np.abs(x) < 0.42) & (np.abs(y + 0.1) < 0.56) & (z > -0.32) & (z < 0.32))
    side = np.sign(x[core])
    mirrored, y, z = np.abs(x[core]), y[core], z[core]
    tissue = labels[core]
    for centre, radii in _NUCLEI:
        tissue[ellipsoid(mirrored, y, z, centre, radii) > 0] = Tissue.DEEP_GREY
    stem = tube(0 * z + mirrored, y, z, ((0, -0.02, -0.07, 0.075), (0, 0.01, -0.32, 0.11)))
    tissue[(stem > 0) & (tissue != Tissue.VENTRICLE)] = Tissue.BRAIN_STEM
    hippocampus = tube(mirrored, y, z, ((0.22, -0.2, -0.14, 0.03), (0.235, 0.12, -0.235, 0.045)))
    tissue[hippocampus > 0] = Tissue.GREY_MATTER
    growth = -0.006 + 0.035 * atrophy**2 + side * generator.normal(0, 0.005)
    lateral = np.maximum(
        tube(mirrored, y, z, _VENTRICLE_BODY),
        tube(mirrored, y, z, _TEMPORAL_HORN) - 0.3 * np.maximum(growth, 0),
    )
    # The septum between the horns stays.
    tissue[(lateral + growth > 0) & (mirrored > 0.014)] = Tissue.VENTRICLE
    slit = 0.016 + 0.02 * atrophy**2
    third = np.minimum(slit - mirrored, ellipsoid(0 * y, y, z, (0, -0.04, 0.0), (1, 0.16, 0.10)))
    tissue[third > 0] = Tissue.VENTRICLE
    labels[core] = tissue
