"""Noise that is correlated between coils made white, by what a scan without an excitation measured of it."""

from __future__ import annotations

import torch
from jaxtyping import Complex
from torch import Tensor

# Smallest pivot of a covariance's Cholesky factor, relative to the largest.
DEGENERATE = 1e-6


def noise_covariance(noise: Complex[Tensor, "coil sample"]) -> Complex[Tensor, "coil coil"]:
    """Return the covariance of the coils' noise, whose mean is 0, in double precision.

    Raises ValueError for fewer samples than coils, of which the covariance would be singular.
    """
    coils, samples = noise.shape
    if samples < coils:
        raise ValueError(f"the noise of {coils} coils needs at least as many samples, got {samples}")
    precise = noise.to(torch.complex128)
    return precise @ precise.mH / samples


def whiten(
    kspace: Complex[Tensor, "... coil height width"],
    covariance: Complex[Tensor, "scanned scanned"],
    *,
    dwell_time_ratio: float = 1.0,
) -> Complex[Tensor, "... coil height width"]:
    """Return `kspace` with noise that is independent between coils, with a mean squared magnitude of 1 in each.

    The coils become combinations of each other: L⁻¹ k with the covariance L Lᴴ. What a reconstruction weighs by noise,
    such as SENSE, is then a plain least-squares problem.

    Args:
        dwell_time_ratio: time a sample of the noise scan took over that of the image. Noise grows with the bandwidth,
            so that the covariance of the image's noise is that of the scan times this.

    Raises ValueError for another number of coils, a ratio that is not above 0, or a covariance that is singular, such
    as where one coil was not connected.
    Source: Pruessmann et al., Advances in SENSE with arbitrary k-space trajectories, 2001, appendix B.
    """
    if covariance.shape[0] != kspace.shape[-3]:
        raise ValueError(f"the covariance is of {covariance.shape[0]} coils, and the k-space has {kspace.shape[-3]}")
    if not 0 < dwell_time_ratio < float("inf"):
        raise ValueError(f"dwell_time_ratio must be above 0 and finite, got {dwell_time_ratio}")
    factor, failed = torch.linalg.cholesky_ex(covariance.to(torch.complex128) * dwell_time_ratio)
    pivots = factor.diagonal().real
    if int(failed) or not bool((pivots > DEGENERATE * pivots.max()).all()):
        raise ValueError(
            "the noise covariance is singular: a coil without noise, or one that repeats others; leave it out"
        )
    white = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=factor.dtype), upper=False)
    return torch.einsum("vc,...cyx->...vyx", white.to(kspace), kspace)
