"""The orthonormal Haar transform of 2×2×2 neighbourhoods, written on tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_ONE_AXIS = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
# Row 0 is the low-pass band aaa; row 4·i + 2·j + k differentiates the axes whose bit is 1 (aad, ada, …, ddd).
_HAAR = torch.kron(torch.kron(_ONE_AXIS, _ONE_AXIS), _ONE_AXIS)


def haar(octets: Float[Tensor, "*batch 8 channel"]) -> Float[Tensor, "*batch 8 channel"]:
    """Transform octets of tokens (2×2×2, last axis fastest) into one low-pass and seven high-pass bands.

    The matrix is orthogonal, so that band norms equal token norms: the low-pass band is the sum of the octet over √8.
    Source: Haar wavelets as in WaveFormer (MICCAI 2025), with the gain of √8 a level normalised away.
    """
    return _HAAR.to(octets) @ octets


def inverse_haar(bands: Float[Tensor, "*batch 8 channel"]) -> Float[Tensor, "*batch 8 channel"]:
    """Invert `haar`."""
    return _HAAR.to(bands).T @ bands
