"""Gamma: contrast between tissues that the scaling to [0, 1] leaves to the scanner and its protocol."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from voxelwave.data.augmentations import Volumes
from voxelwave.registry import AUGMENTATIONS


def apply_gamma(volume: Volumes, gamma: Float[Tensor, " batch"]) -> Volumes:
    """Raise each sample to its `gamma` (above 0): |v|^gamma with the sign of v; -1, 0 and 1 stay what they are."""
    exponent = gamma.to(volume.device, non_blocking=True).view(-1, 1, 1, 1, 1)
    return volume.abs().pow_(exponent).copysign_(volume).contiguous()


@AUGMENTATIONS.register("gamma")
class RandomGamma:
    """Raises each sample to exp(u), u uniform between -log_gamma and log_gamma: darker as often as brighter.

    Raises ValueError for a log_gamma below 0.
    """

    def __init__(self, *, log_gamma: float = 0.3) -> None:
        if not 0 <= log_gamma < math.inf:
            raise ValueError(f"log_gamma is finite and at least 0 (contrast stays), got {log_gamma}")
        self.log_gamma = log_gamma

    def draw(self, batch_size: int, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Return the exponent of every sample."""
        return ((2 * torch.rand(batch_size, generator=generator) - 1) * self.log_gamma).exp()

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume` with another contrast."""
        return apply_gamma(volume, self.draw(len(volume), generator))
