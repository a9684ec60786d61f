"""What a choice of lines tells of itself: its centre, and its acceleration by name and in fact."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor


class Acceleration(NamedTuple):
    """How much less is measured.

    Attributes:
        nominal: the mean distance of sampled lines outside of the centre; `effective` where there are no two of them.
        effective: all lines over those that are sampled.
    """

    nominal: float
    effective: float


def lines_of(sampled: Bool[Tensor, "height width"]) -> Bool[Tensor, " width"]:
    """Return which lines are sampled; raises ValueError where one is sampled in part."""
    if not torch.equal(sampled, sampled[:1].expand_as(sampled)):
        raise ValueError("a choice of whole lines is needed, got one of single places: its rows differ")
    return sampled[0]


def num_center_lines(sampled: Bool[Tensor, " width"]) -> int:
    """Return how many lines around the origin are sampled without a gap, as many to its left as from it to the right.

    Twice the shorter side, which a line of the pattern that touches the centre does not make wider; all lines where all
    are sampled. It is 0 where there is no calibration centre.
    """
    if bool(sampled.all()):
        return len(sampled)
    left, right = _center_run(sampled)
    return 2 * min(left, right)


def acceleration_of(sampled: Bool[Tensor, " width"]) -> Acceleration:
    """Read the acceleration from sampled lines; raises ValueError where there are none.

    Margins that were not measured, such as partial Fourier leaves, count in `effective` alone.
    """
    if not bool(sampled.any()):
        raise ValueError("an acceleration can be read from sampled lines only, and none is sampled")
    effective = len(sampled) / int(sampled.sum())
    left, right = _center_run(sampled)
    origin = len(sampled) // 2
    sides = (sampled[: origin - left].nonzero()[:, 0], origin + right + sampled[origin + right :].nonzero()[:, 0])
    gaps = torch.cat([side.diff() for side in sides])
    return Acceleration(float(gaps.double().mean()) if len(gaps) else effective, effective)


def _center_run(sampled: Bool[Tensor, " width"]) -> tuple[int, int]:
    """Return how many lines without a gap end before the origin, and how many begin at it."""
    origin = len(sampled) // 2
    left = int(sampled[:origin].flip(0).int().cumprod(0).sum())
    right = int(sampled[origin:].int().cumprod(0).sum())
    return left, right
