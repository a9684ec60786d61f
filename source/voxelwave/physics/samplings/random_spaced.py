"""One line at random out of every n, and the centre."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from voxelwave.physics.samplings import center_band, check_acceleration, check_settings
from voxelwave.registry import SAMPLINGS


@SAMPLINGS.register("random_spaced")
class RandomSpacedLines:
    """Samples one random line of each `acceleration` lines, and the round(center_fraction × width) at the centre.

    The centre is added, so that less is saved than `acceleration` says. The first bin begins at line 0; one that the
    edge cuts, or that is no whole number of lines wide, is as likely to give a line as it is wide, so that every line
    is as likely as any.

    Raises ValueError for settings out of range. Source: jittered sampling, Cook, Stochastic sampling in computer
    graphics, 1986, section 3.
    """

    def __init__(self, *, acceleration: float = 4.0, center_fraction: float = 0.08) -> None:
        check_settings(acceleration, center_fraction)
        self.acceleration, self.center_fraction = acceleration, center_fraction

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        height, width = shape
        check_acceleration(self.acceleration, width)
        starts = torch.arange(0, width, self.acceleration, dtype=torch.float64)
        within = torch.rand(len(starts), generator=generator, dtype=torch.float64)
        chosen = (starts + within * self.acceleration).long()
        lines = torch.zeros(width, dtype=torch.bool)
        lines[center_band(width, self.center_fraction)] = True
        lines[chosen[chosen < width]] = True
        return lines.repeat(height, 1)
