"""Every n-th line, and the centre."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from voxelwave.physics.samplings import center_band, check_acceleration, check_settings, exact_lines
from voxelwave.registry import SAMPLINGS


@SAMPLINGS.register("equispaced")
class EquispacedLines:
    """Samples every `acceleration`-th line from `offset` on, and the round(center_fraction × width) at the centre.

    The centre is added, so that less is saved than `acceleration` says. With `exact`, the other lines are spaced
    such that round(width / acceleration) are sampled in all; their gaps, without the centre, differ by one at most.
    Where the spacing is no whole number, the line at or before each place is taken. `offset=None` draws it each time;
    `offset="origin"` is (width // 2) mod `acceleration`, with which the origin is one of the lines of the pattern.

    Raises ValueError for settings out of range. Source: Zbontar et al., fastMRI, 2018, section 4; the spacing of
    `exact` is that of its "equispaced fraction".
    """

    def __init__(
        self,
        *,
        acceleration: float = 4.0,
        center_fraction: float = 0.08,
        offset: int | Literal["origin"] | None = 0,
        exact: bool = False,
    ) -> None:
        check_settings(acceleration, center_fraction, exact_axes=int(exact))
        if isinstance(offset, int) and not 0 <= offset < acceleration:
            raise ValueError(f"offset must be at least 0 and below the acceleration of {acceleration:g}, got {offset}")
        if offset == "origin" and (exact or acceleration != round(acceleration)):
            raise ValueError("offset 'origin' needs an acceleration that is a whole number, and not `exact`")
        self.acceleration, self.center_fraction, self.offset, self.exact = acceleration, center_fraction, offset, exact

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        height, width = shape
        if self.exact:
            return exact_lines(
                shape,
                lambda outer, count: self._spread(outer, count, generator),
                acceleration=self.acceleration,
                center_fraction=self.center_fraction,
            )
        check_acceleration(self.acceleration, width)
        lines = torch.zeros(width, dtype=torch.bool)
        lines[center_band(width, self.center_fraction)] = True
        start = (
            width // 2 % round(self.acceleration)
            if self.offset == "origin"
            else self._start(self.acceleration, generator)
        )
        lines[torch.arange(start, width, self.acceleration, dtype=torch.float64).long()] = True
        return lines.repeat(height, 1)

    def _spread(self, outer: Int[Tensor, " outer"], count: int, generator: torch.Generator) -> Int[Tensor, " chosen"]:
        if count == 0:
            return outer[:0]
        # The outer lines as a ring: the last gap goes over the edge of the k-space, which is periodic.
        start = self._start(len(outer) / count, generator)
        return outer[(start + torch.arange(count) * len(outer) // count) % len(outer)]

    def _start(self, spacing: float, generator: torch.Generator) -> int:
        if isinstance(self.offset, int):
            return self.offset
        return int(torch.randint(math.ceil(spacing), (), generator=generator))
