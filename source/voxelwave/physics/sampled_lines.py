"""What a choice of lines tells of itself: where it samples a grid, its centre, its acceleration by name and in fact."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from voxelwave.contracts import NumLines


class Acceleration(NamedTuple):
    """How much less is measured.

    Attributes:
        nominal: the mean distance of sampled lines outside of the centre; `effective` where there are no two of them.
        effective: all lines over those that are sampled.
        error: standard error of `nominal` as a share of it, where lines are random; 0 where they are evenly spaced.
    """

    nominal: float
    effective: float
    error: float = 0.0


def lines_of(sampled: Bool[Tensor, "height width"]) -> Bool[Tensor, " width"]:
    """Return which lines are sampled; raises ValueError where one is sampled in part."""
    if not torch.equal(sampled, sampled[:1].expand_as(sampled)):
        raise ValueError("a choice of whole lines is needed, got one of single places: its rows differ")
    return sampled[0]


def as_lines(sampled: Bool[Tensor, "batch height width"]) -> Bool[Tensor, "batch ... width"]:
    """Return `sampled` as lines, `[batch, width]`, where all of them are whole, else as it is."""
    lines = sampled[:, 0]
    return lines if bool((sampled == lines[:, None]).all()) else sampled


def num_center_lines(sampled: Bool[Tensor, "*batch width"]) -> Int[Tensor, "*batch"]:
    """Return how many lines around the origin are sampled without a gap, as many to its left as from it to the right.

    Twice the shorter side, which a line of the pattern that touches the centre does not make wider; all lines where all
    are sampled. It is 0 where there is no calibration centre.
    """
    left, right = _center_run(sampled)
    return torch.where(sampled.all(-1), sampled.shape[-1], 2 * torch.minimum(left, right))


def sampled_places(sampled: Bool[Tensor, "batch ... width"], height: int) -> Bool[Tensor, "batch height width"]:
    """Return `sampled` with its axis of the height, a view; lines, `[batch, width]`, run along all of it.

    Raises ValueError for places of another height.
    """
    if sampled.ndim == 2:
        return sampled[:, None].expand(-1, height, -1)
    if sampled.ndim != 3 or sampled.shape[1] != height:
        raise ValueError(
            f"what is sampled is [batch, width] or [batch, height, width] with a height of {height}, "
            f"got {tuple(sampled.shape)}"
        )
    return sampled


def center_lines(
    sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
) -> Bool[Tensor, "batch width"]:
    """Return which lines are the `num_low_frequencies` ones around the origin; None finds them in `sampled`.

    Lines that are given in place of a number are returned. Of places, the row through the origin counts.
    Raises ValueError for a number below 1 or above the width, and where the line of the origin is not sampled.
    Source: Sriram et al., End-to-end variational networks, 2020, section 3.3, and its public code (fastMRI, MIT), which
    begins an even number of lines at an odd width one line later than those that are found lie.
    """
    if isinstance(num_low_frequencies, Tensor) and num_low_frequencies.dtype == torch.bool:
        return num_low_frequencies
    batch, width = sampled.shape[0], sampled.shape[-1]
    if num_low_frequencies is None:
        lines = sampled if sampled.ndim == 2 else sampled[:, sampled.shape[1] // 2]
        if not bool(lines[:, width // 2].all()):
            raise ValueError(
                f"the line of the origin, {width // 2} of {width}, is not sampled: no maps can be made of this "
                "k-space; is it centred?"
            )
        count = num_center_lines(lines).clamp_min(1)
        start = width // 2 - count // 2
    else:
        count = torch.as_tensor(num_low_frequencies, device=sampled.device).expand(batch)
        start = (width - count + 1) // 2
    if bool(((count < 1) | (count > width)).any()):
        raise ValueError(f"num_low_frequencies must be 1 to {width}, the width, got {count.tolist()}")
    lines = torch.arange(width, device=sampled.device)
    return (lines >= start[:, None]) & (lines < (start + count)[:, None])


def acceleration_of(sampled: Bool[Tensor, " width"]) -> Acceleration:
    """Read the acceleration from sampled lines; raises ValueError where there are none.

    Margins that were not measured, such as partial Fourier leaves, count in `effective` alone.
    """
    if not bool(sampled.any()):
        raise ValueError("an acceleration can be read from sampled lines only, and none is sampled")
    effective = len(sampled) / int(sampled.sum())
    left, right = map(int, _center_run(sampled))
    origin = len(sampled) // 2
    sides = (sampled[: origin - left].nonzero()[:, 0], origin + right + sampled[origin + right :].nonzero()[:, 0])
    gaps = torch.cat([side.diff() for side in sides]).double()
    if len(gaps) < 2:
        return Acceleration(float(gaps[0]) if len(gaps) else effective, effective)
    # Distances that are rounded, or that the centre cuts, differ by a line.
    spread = float(gaps.std()) if float(gaps.max() - gaps.min()) > 1 else 0.0
    nominal = float(gaps.mean())
    return Acceleration(nominal, effective, spread / nominal / len(gaps) ** 0.5)


def _center_run(sampled: Bool[Tensor, "*batch width"]) -> tuple[Int[Tensor, "*batch"], Int[Tensor, "*batch"]]:
    """Return how many lines without a gap end before the origin, and how many begin at it."""
    origin = sampled.shape[-1] // 2
    # A product over the lines outwards stays 1 up to the first gap.
    before, behind = sampled[..., :origin].flip(-1), sampled[..., origin:]
    return before.int().cumprod(-1).sum(-1), behind.int().cumprod(-1).sum(-1)
