"""The orthonormal Haar transform of 2×2×2 neighbourhoods, written on tokens."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


@lru_cache
def _haar_matrix(dtype: torch.dtype, device: torch.device) -> Float[Tensor, "band token"]:
    # Row 0 is the low-pass band aaa; row 4·i + 2·j + k differentiates the axes whose bit is 1 (aad, ada, …, ddd).
    one_axis = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    return torch.kron(torch.kron(one_axis, one_axis), one_axis).to(dtype=dtype, device=device)


def haar(octets: Float[Tensor, "*batch 8 channel"]) -> Float[Tensor, "*batch 8 channel"]:
    """Transform octets of tokens (2×2×2, last axis fastest) into one low-pass and seven high-pass bands.

    The matrix is orthogonal, so that band norms equal token norms: the low-pass band is the sum of the octet over √8.
    Source: Haar wavelets as in WaveFormer (MICCAI 2025), with the gain of √8 a level normalised away.
    """
    return _haar_matrix(octets.dtype, octets.device) @ octets


def inverse_haar(bands: Float[Tensor, "*batch 8 channel"]) -> Float[Tensor, "*batch 8 channel"]:
    """Invert `haar`."""
    return _haar_matrix(bands.dtype, bands.device).T @ bands
