"""Lines at random, dense near the centre."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from voxelwave.physics.samplings import check_settings, exact_lines
from voxelwave.registry import SAMPLINGS


@SAMPLINGS.register("variable_density")
class VariableDensityLines:
    """Samples a centre band and other lines, round(width / acceleration) in all, fewer the further from the centre.

    A line is preferred with (1 - distance) ** `decay`, the distance being 0 at the centre and just below 1 at the
    edge; a `decay` of 0 prefers none.

    Raises ValueError for settings out of range. Source: Lustig et al., Sparse MRI, 2007, for the density; Efraimidis
    and Spirakis, 2006, for drawing by weights without putting back.
    """

    def __init__(self, *, acceleration: float = 4.0, center_fraction: float = 0.08, decay: float = 2.0) -> None:
        check_settings(acceleration, center_fraction, exact_axes=1)
        if not 0 <= decay < math.inf:
            raise ValueError(f"decay must be at least 0 and finite, got {decay}")
        self.acceleration, self.center_fraction, self.decay = acceleration, center_fraction, decay

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        return exact_lines(
            shape,
            lambda outer, count: self._first(outer, count, shape[1] // 2, generator),
            acceleration=self.acceleration,
            center_fraction=self.center_fraction,
        )

    def _first(
        self, outer: Int[Tensor, " outer"], count: int, origin: int, generator: torch.Generator
    ) -> Int[Tensor, " chosen"]:
        # Each line waits for an exponential time, at the rate of its weight; the first `count` to arrive are taken.
        waiting = torch.empty(len(outer), dtype=torch.float64).exponential_(generator=generator)
        closeness = 1 - (outer - origin).abs() / (origin + 1)
        return outer[(waiting.log() - self.decay * closeness.log()).argsort()[:count]]
