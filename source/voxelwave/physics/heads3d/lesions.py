"""Lesions of a generated head: small-vessel disease, infarcts, tumours with oedema, haemorrhages."""

from __future__ import annotations

import numpy as np

from voxelwave.physics.heads3d.geometry import HeadSpace
from voxelwave.physics.heads3d.tissues import PARENCHYMA, Labels, Tissue
from voxelwave.physics.smooth_noise import smooth_noise


def paint_lesions(labels: Labels, space: HeadSpace, generator: np.random.Generator, *, most: int = 4) -> None:
    """Paint 0 to `most` lesions into the brain; about a third of the heads have none."""
    if generator.uniform() < 0.35:
        return
    x, y, z = space.coordinates()
    rough = smooth_noise(generator, space.size, 14) + 0.6 * smooth_noise(generator, space.size, 24)
    brain = np.isin(labels, PARENCHYMA)
    white = np.argwhere(labels == Tissue.WHITE_MATTER)
    for _ in range(generator.integers(1, most + 1)):
        kind = generator.choice(["spots", "infarct", "tumour", "haemorrhage"], p=[0.4, 0.25, 0.2, 0.15])
        i, j, k = white[generator.integers(len(white))]
        centre = (x[i, j, k], y[i, j, k], z[i, j, k])
        stretch = generator.uniform(0.75, 1.3, 3).astype(np.float32)
        distance = np.sqrt(sum(((p - c) / s) ** 2 for p, c, s in zip((x, y, z), centre, stretch, strict=True)))
        if kind == "spots":
            # Many small white-matter spots around the centre, as in small-vessel disease.
            labels[(distance < 0.3) & (rough > 1.9) & (labels == Tissue.WHITE_MATTER)] = Tissue.ISCHAEMIA
            labels[(distance < 0.045) & brain] = Tissue.ISCHAEMIA
        elif kind == "infarct":
            labels[(distance < generator.uniform(0.08, 0.24) * (1 + 0.18 * rough)) & brain] = Tissue.ISCHAEMIA
        elif kind == "tumour":
            reach = generator.uniform(0.07, 0.17)
            oedema = reach * generator.uniform(1.2, 1.7) * (1 + 0.2 * rough)
            labels[(distance < oedema) & (labels == Tissue.WHITE_MATTER)] = Tissue.OEDEMA
            labels[(distance < reach * (1 + 0.1 * rough)) & brain] = Tissue.TUMOUR
        else:
            labels[(distance < generator.uniform(0.05, 0.14) * (1 + 0.12 * rough)) & brain] = Tissue.HAEMORRHAGE
