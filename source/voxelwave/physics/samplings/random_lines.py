"""Lines at random, and the centre."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from voxelwave.physics.samplings import check_settings, exact_lines
from voxelwave.registry import SAMPLINGS


@SAMPLINGS.register("random_lines")
class RandomLines:
    """Samples a centre band and other lines, each as likely as any: round(width / acceleration) in all.

    Raises ValueError for settings out of range. Source: Zbontar et al., fastMRI, 2018, section 4.
    """

    def __init__(self, *, acceleration: float = 4.0, center_fraction: float = 0.08) -> None:
        check_settings(acceleration, center_fraction, exact_axes=1)
        self.acceleration, self.center_fraction = acceleration, center_fraction

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        return exact_lines(
            shape,
            lambda outer, count: outer[torch.randperm(len(outer), generator=generator)[:count]],
            acceleration=self.acceleration,
            center_fraction=self.center_fraction,
        )
