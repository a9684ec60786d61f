"""What every backbone accepts: volumes of a registered channel count in whole patches, and masks that leave some."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.ops.patches import token_grid


def check_input(volume: Tensor, hidden: Tensor | None, *, counts: Collection[str], patch_size: int) -> Grid:
    """Return the token grid of `volume`; `counts` are the channel counts that have a stem, as text.

    Raises ValueError for another channel count, a side that the patch does not divide, a `hidden` of another shape, or
    a sample without a visible token.
    """
    if volume.ndim != 5 or str(volume.shape[1]) not in counts:
        accepted = " or ".join(counts)
        raise ValueError(
            f"the backbone takes volumes [batch, {accepted}, depth, height, width], got {list(volume.shape)}"
        )
    grid = token_grid(volume.shape[-3:], patch_size)
    if hidden is not None and hidden.shape != (len(volume), *grid):
        raise ValueError(f"`hidden` must be [{len(volume)}, {', '.join(map(str, grid))}], got {list(hidden.shape)}")
    if hidden is not None and bool(hidden.flatten(1).all(1).any()):
        raise ValueError("`hidden` hides every token of a sample: at least one must stay visible")
    return grid
