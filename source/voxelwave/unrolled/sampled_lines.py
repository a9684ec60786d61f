"""What a choice of lines says: where a grid is sampled, and which lines around its origin have no gap."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from voxelwave.contracts import NumLines


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


def num_center_lines(sampled: Bool[Tensor, "batch ... width"]) -> Int[Tensor, " batch"]:
    """Return how many lines around the origin, as many on either side, are sampled without a gap.

    Of places, the row through the origin counts.
    Raises ValueError where the line of the origin is not sampled.
    Source: Sriram et al., End-to-end variational networks, 2020, section 3.3, and its public code (fastMRI, MIT).
    """
    lines = sampled if sampled.ndim == 2 else sampled[:, sampled.shape[1] // 2]
    origin = lines.shape[-1] // 2
    if not bool(lines[:, origin].all()):
        raise ValueError(
            f"the line of the origin, {origin} of {lines.shape[-1]}, is not sampled: no maps can be made of this "
            "k-space; is it centred?"
        )
    # A product over the lines outwards stays 1 up to the first gap.
    left, right = (side.int().cumprod(-1).sum(-1) for side in (lines[:, :origin].flip(-1), lines[:, origin:]))
    return (2 * torch.minimum(left, right)).clamp_min(1)


def center_lines(
    sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
) -> Bool[Tensor, "batch width"]:
    """Return which lines are the `num_low_frequencies` ones around the origin; None finds them in `sampled`.

    Raises as `num_center_lines` does, and ValueError for a number below 1 or above the width.
    """
    batch, width = sampled.shape[0], sampled.shape[-1]
    if num_low_frequencies is None:
        num_low_frequencies = num_center_lines(sampled)
    count = torch.as_tensor(num_low_frequencies, device=sampled.device).expand(batch)
    if bool(((count < 1) | (count > width)).any()):
        raise ValueError(f"num_low_frequencies must be 1 to {width}, the width, got {count.tolist()}")
    start = (width - count + 1) // 2
    lines = torch.arange(width, device=sampled.device)
    return (lines >= start[:, None]) & (lines < (start + count)[:, None])
