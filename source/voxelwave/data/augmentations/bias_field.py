"""The bias field of MRI: coils send and receive unevenly, and the brightness of one tissue drifts over the head."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial.legendre import legvander
from torch import Tensor

from voxelwave.data.augmentations import Volumes
from voxelwave.registry import AUGMENTATIONS


def _legendre(side: int, order: int, like: Tensor) -> Float[Tensor, "degree {side}"]:
    """Return the Legendre polynomials of degree 0 to `order` at the centres of `side` voxels that span -1 to 1."""
    centres = (2 * np.arange(side) + 1 - side) / side
    return torch.from_numpy(legvander(centres, order).T).to(like, non_blocking=True)


def bias_field(
    coefficients: Float[Tensor, "batch degree degree degree"], depth: int, height: int, width: int
) -> Float[Tensor, "batch {depth} {height} {width}"]:
    """Return exp(sum over i, j, k of coefficient[i, j, k] P_i(z) P_j(y) P_k(x)), P being Legendre polynomials.

    The sum is computed axis by axis, so that memory holds one grid and not one for each coefficient, and in the
    precision of the coefficients.
    """
    z, y, x = (_legendre(side, coefficients.shape[1] - 1, coefficients) for side in (depth, height, width))
    lines = torch.einsum("bijk,id->bdjk", coefficients, z)
    planes = torch.einsum("bdjk,jh->bdhk", lines, y)
    return (planes @ x).exp_()


def apply_bias_field(volume: Volumes, coefficients: Float[Tensor, "batch degree degree degree"]) -> Volumes:
    """Multiply all channels of a sample by the `bias_field` of its coefficients; 0 stays 0, and 1 may be exceeded."""
    depth, height, width = volume.shape[2:]
    coefficients = coefficients.to(volume.device, non_blocking=True)
    return (volume * bias_field(coefficients, depth, height, width).unsqueeze(1)).to(volume.dtype).contiguous()


@AUGMENTATIONS.register("bias_field")
class RandomBiasField:
    """Multiplies a sample by exp(polynomial): smooth, positive, without any change of the overall brightness.

    Low degrees dominate, as in coils: all coefficients come from one uniform distribution, and the mean square of a
    Legendre polynomial of degree n is 1 / (2 n + 1). The logarithm of a field has a mean of about 0 over the volume.

    Args:
        strength: standard deviation of the logarithm of the field, over the volume and over draws.
        order: highest total degree of the polynomial.

    Raises ValueError for a strength below 0 or an order below 1.

    Source: Van Leemput et al., Automated model-based bias field correction of MR images of the brain, IEEE TMI 1999.
    """

    def __init__(self, *, strength: float = 0.15, order: int = 3) -> None:
        if not 0 <= strength < math.inf:
            raise ValueError(f"the strength of a bias field is finite and at least 0 (no field), got {strength}")
        if order < 1:
            raise ValueError(f"the order of a bias field is at least 1 (a linear drift), got {order}")
        self.strength, self.order = strength, order

    def draw(self, batch_size: int, generator: torch.Generator) -> Float[Tensor, "batch degree degree degree"]:
        """Return a coefficient for every triple of degrees: 0 for the constant and above the total degree `order`."""
        degree = torch.arange(self.order + 1)
        total = degree[:, None, None] + degree[:, None] + degree
        used = (total > 0) & (total <= self.order)
        mean_square = 1 / ((2 * degree + 1)[:, None, None] * (2 * degree + 1)[:, None] * (2 * degree + 1))
        # A uniform distribution over -a to a has the variance a² / 3.
        limit = self.strength * math.sqrt(3 / float(mean_square[used].sum()))
        return (2 * torch.rand(batch_size, *used.shape, generator=generator) - 1) * limit * used

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume` under a bias field."""
        return apply_bias_field(volume, self.draw(len(volume), generator))
