"""Smooth random fields: what makes one generated object differ from the next."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32
from scipy import sparse


def _spline_weights(size: int, cells: int) -> sparse.csr_array:
    """Return the uniform cubic B-spline weights of `cells + 3` knots at the centres of `size` voxels."""
    position = (np.arange(size) + 0.5) * cells / size
    cell = np.floor(position).astype(int)
    t = position - cell
    pieces = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    knots = cell[:, None] + np.arange(4)
    weights = np.stack(pieces, axis=1).astype(np.float32) / 6
    return sparse.csr_array((weights.ravel(), knots.ravel(), 4 * np.arange(size + 1)), (size, cells + 3))


def smooth_noise(generator: np.random.Generator, size: int, cells: int) -> Float32[np.ndarray, "depth height width"]:
    """Return noise of unit variance on a cube of `size` voxels, smooth over a `cells`-th of its edge."""
    field = generator.standard_normal((cells + 3,) * 3, dtype=np.float32)
    weights = _spline_weights(size, cells)
    # Axis by axis as sparse products: much faster than voxel by voxel, and, unlike a dense product, in one
    # thread, so that processes that draw heads side by side do not fight for the cores.
    for _ in range(3):
        rows = weights @ field.reshape(cells + 3, -1)
        field = np.moveaxis(rows.reshape(size, *field.shape[1:]), 0, -1)
    # Cubic B-splines keep 0.479 of the variance along each axis.
    return np.ascontiguousarray(field) / np.float32(0.479**1.5)


def band_noise(
    generator: np.random.Generator, size: int, *, cycles: float
) -> Float32[np.ndarray, "depth height width"]:
    """Return periodic noise of unit variance with about `cycles` waves along each edge, in all directions."""
    spectrum = np.fft.rfftn(generator.standard_normal((size,) * 3))
    full, half = np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size)
    radius = np.sqrt(full[:, None, None] ** 2 + full[None, :, None] ** 2 + half[None, None, :] ** 2)
    spectrum *= np.exp(-(((radius / cycles - 1) / 0.18) ** 2))
    noise: Float32[np.ndarray, "depth height width"] = np.fft.irfftn(spectrum, (size,) * 3, axes=(0, 1, 2)).astype(
        np.float32
    )
    noise /= noise.std()
    return noise
