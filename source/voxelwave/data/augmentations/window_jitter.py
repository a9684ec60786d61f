"""Narrower windows of CT, cut out of those that the volume was scaled with: radiologists use different ones, too."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from voxelwave.data.augmentations import Volumes
from voxelwave.registry import AUGMENTATIONS


def narrow_window(
    volume: Volumes, low: Float[Tensor, "batch channel"], high: Float[Tensor, "batch channel"]
) -> Volumes:
    """Stretch `low` to `high` of each channel over [0, 1], clipped there.

    With 0 <= low < high <= 1 a window of Hounsfield units from a to b becomes the one from a + low (b - a) to
    a + high (b - a): it lies inside the old one, so that nothing it shows was clipped before.
    """
    start, end = (edge.to(volume.device, non_blocking=True)[..., None, None, None] for edge in (low, high))
    # One multiplication and addition would be faster, but would miss 0 and 1 at the edges by rounding.
    return (volume - start).div_(end - start).clamp_(0, 1).to(volume.dtype).contiguous()


@AUGMENTATIONS.register("window_jitter")
class WindowJitter:
    """Narrows the window of each channel of each sample to a random part of at least 1 - `jitter` of its width.

    For windows clipped to [0, 1]; what lies outside counts as clipped. Raises ValueError for a jitter outside [0, 1).
    """

    def __init__(self, *, jitter: float = 0.2) -> None:
        if not 0 <= jitter < 1:
            raise ValueError(
                f"the jitter of a window is the share of its width that may go: from 0 (none) to below 1, got {jitter}"
            )
        self.jitter = jitter

    def draw(
        self, batch_size: int, channels: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, "batch channel"]]:
        """Return the lower and the upper end of every channel's new window, as shares of the old one."""
        removed, below = torch.rand(2, batch_size, channels, generator=generator)
        removed = removed * self.jitter
        low = removed * below
        return low, 1 - (removed - low)

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume` seen through other windows."""
        batch_size, channels = volume.shape[:2]
        return narrow_window(volume, *self.draw(batch_size, channels, generator))
