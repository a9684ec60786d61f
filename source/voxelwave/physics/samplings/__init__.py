"""Each file holds one sampling, which says which places of a k-space are measured.

The origin of a k-space of n lines is line n // 2. Lines run along the height, and are chosen along the width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@runtime_checkable
class Sampling(Protocol):
    """Chooses which places of a k-space are sampled."""

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` (height, width) is sampled; on the CPU, where the generator is.

        Raises ValueError where the settings do not fit the shape.
        """
        ...


def check_settings(acceleration: float, center_fraction: float, *, exact_axes: int = 0) -> None:
    """Raise ValueError for settings that suit no k-space.

    Where the number of samples is exact, `exact_axes` is the number of axes along which the centre is only a part.
    """
    if not 1 <= acceleration < float("inf"):
        raise ValueError(f"acceleration must be finite and at least 1 (everything is sampled), got {acceleration}")
    if not 0 < center_fraction <= 1:
        raise ValueError(f"center_fraction must be above 0 and at most 1, got {center_fraction}")
    share = center_fraction**exact_axes
    if exact_axes and share * acceleration > 1 + 1e-9:
        raise ValueError(
            f"the centre alone, {share:.3g} of all places, exceeds the share to sample, 1 / {acceleration:g}: "
            "lower center_fraction or acceleration"
        )


def check_acceleration(acceleration: float, number: int, *, of: str = "lines") -> None:
    """Raise ValueError for an acceleration that leaves less than one of a `number` of lines, or `of` what is chosen."""
    if acceleration > number:
        raise ValueError(f"acceleration must be at most the number of {of}, got {acceleration:g} for {number}")


def center_band(side: int, center_fraction: float) -> slice:
    """Return the round(center_fraction × side) lines around the origin; none where that is 0."""
    count = round(center_fraction * side)
    start = (side - count + 1) // 2
    return slice(start, start + count)


def num_outer(num_places: int, num_center: int, acceleration: float) -> int:
    """Return how many places to sample outside the centre, for round(num_places / acceleration) with it.

    Raises ValueError where the centre alone has more.
    """
    wanted = round(num_places / acceleration)
    if num_center > wanted:
        raise ValueError(
            f"the centre alone, {num_center} of {num_places} places, exceeds the {wanted} to sample at acceleration "
            f"{acceleration:g}: lower center_fraction or acceleration"
        )
    return wanted - num_center


def exact_lines(
    shape: tuple[int, int],
    choose: Callable[[Int[Tensor, " outer"], int], Int[Tensor, " chosen"]],
    *,
    acceleration: float,
    center_fraction: float,
) -> Bool[Tensor, "height width"]:
    """Sample the centre band and, of the other lines, those that `choose(outer, count)` returns.

    Raises ValueError where acceleration or centre do not fit the width.
    """
    height, width = shape
    check_acceleration(acceleration, width)
    lines = torch.zeros(width, dtype=torch.bool)
    lines[center_band(width, center_fraction)] = True
    count = num_outer(width, int(lines.sum()), acceleration)
    lines[choose((~lines).nonzero()[:, 0], count)] = True
    return lines.repeat(height, 1)
