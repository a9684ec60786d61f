"""A label map of tissues as MRI or CT."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32, Int16
from scipy import ndimage

from voxelwave.physics.heads3d.tissues import Labels, Tissue
from voxelwave.physics.smooth_noise import smooth_noise

MRI_CONTRASTS = ("T1", "T2", "FLAIR", "MRA")
# T1, T2, FLAIR and time-of-flight MRA relative to the brightest tissue; CT in Hounsfield units, where skull,
# scalp and vessels are drawn anew for every head.
MEANS: Mapping[Tissue, tuple[float, ...]] = MappingProxyType(
    {
        Tissue.AIR: (0.01, 0.01, 0.01, 0.01, -1000),
        Tissue.SCALP: (0.95, 0.62, 0.70, 0.22, -60),
        Tissue.MUSCLE: (0.42, 0.22, 0.33, 0.18, 55),
        Tissue.SKULL: (0.05, 0.04, 0.05, 0.03, 1000),
        Tissue.DIPLOE: (0.55, 0.38, 0.42, 0.10, 500),
        Tissue.CSF: (0.15, 0.97, 0.11, 0.08, 8),
        Tissue.GREY_MATTER: (0.48, 0.52, 0.58, 0.27, 37),
        Tissue.WHITE_MATTER: (0.74, 0.34, 0.44, 0.25, 29),
        Tissue.DEEP_GREY: (0.58, 0.42, 0.52, 0.26, 38),
        Tissue.VENTRICLE: (0.14, 1.00, 0.08, 0.07, 6),
        Tissue.CEREBELLUM: (0.50, 0.50, 0.55, 0.27, 36),
        Tissue.BRAIN_STEM: (0.68, 0.38, 0.46, 0.24, 31),
        Tissue.EYE: (0.17, 0.98, 0.12, 0.09, 12),
        Tissue.VESSEL: (0.22, 0.10, 0.12, 1.00, 45),
        Tissue.ANEURYSM: (0.22, 0.10, 0.12, 1.00, 45),
        Tissue.ISCHAEMIA: (0.42, 0.72, 0.92, 0.22, 21),
        Tissue.TUMOUR: (0.40, 0.68, 0.80, 0.22, 42),
        Tissue.OEDEMA: (0.52, 0.80, 0.90, 0.20, 20),
        Tissue.HAEMORRHAGE: (0.80, 0.22, 0.38, 0.45, 67),
    }
)


def render_mri(
    labels: Labels,
    generator: np.random.Generator,
    *,
    contrast: str,
    noise: tuple[float, float] = (0.008, 0.018),
) -> Float32[np.ndarray, "depth height width"]:
    """Render a label map as a magnitude image of `contrast` (one of `MRI_CONTRASTS`), in arbitrary units.

    `noise` is the range that its standard deviation is drawn from, relative to the brightest tissue.
    """
    size = labels.shape[0]
    means = np.array([MEANS[tissue][MRI_CONTRASTS.index(contrast)] for tissue in Tissue], np.float32)
    means = means * generator.uniform(0.95, 1.05, len(means)).astype(np.float32)
    # 1. Tissue is not uniform: a slow texture, and a fine one as of unresolved structure.
    image = means[labels]
    image *= 1 + 0.02 * smooth_noise(generator, size, 10) + 0.02 * smooth_noise(generator, size, size // 3)
    # 2. Partial volume.
    image = ndimage.gaussian_filter(image, generator.uniform(0.5, 0.7), truncate=3)
    # 3. The coils see the nearer side brighter.
    image *= np.exp(generator.uniform(0.05, 0.15) * smooth_noise(generator, size, 2))
    # 4. Magnitude of a complex image with noise in both parts (Rician).
    sigma = generator.uniform(*noise)
    real, imaginary = (sigma * generator.standard_normal(labels.shape, dtype=np.float32) for _ in range(2))
    image = np.hypot(image + real, imaginary)
    # 5. MRI has no unit: every scanner scales as it likes.
    scaled: Float32[np.ndarray, "depth height width"] = image * (generator.uniform(200, 2000) / image.max())
    return scaled


def render_ct(labels: Labels, generator: np.random.Generator) -> Int16[np.ndarray, "depth height width"]:
    """Render a label map as CT in Hounsfield units; about a third of the heads got contrast agent (CTA)."""
    size = labels.shape[0]
    means = np.array([MEANS[tissue][-1] for tissue in Tissue], np.float32)
    means += generator.normal(0, 1, len(means)).astype(np.float32)
    means[Tissue.AIR] = -1000
    means[Tissue.SCALP] = generator.uniform(-90, -20)
    means[Tissue.SKULL] = generator.uniform(850, 1500)
    means[Tissue.DIPLOE] = generator.uniform(0.45, 0.7) * means[Tissue.SKULL]
    if generator.uniform() < 0.35:
        means[[Tissue.VESSEL, Tissue.ANEURYSM]] = generator.uniform(250, 400)
    image = means[labels]
    bone = (labels == Tissue.SKULL) | (labels == Tissue.DIPLOE)
    image += np.where(bone, 60 * smooth_noise(generator, size, 12), 1.0 * smooth_noise(generator, size, 10))
    image = ndimage.gaussian_filter(image, generator.uniform(0.5, 0.65), truncate=3)
    noise = ndimage.gaussian_filter(generator.standard_normal(labels.shape, dtype=np.float32), 0.6, truncate=3)
    image += generator.uniform(2, 4.5) * noise / noise.std()
    hounsfield: Int16[np.ndarray, "depth height width"] = np.rint(image).clip(-1024, 3071).astype(np.int16)
    return hounsfield
