"""White Gaussian noise."""

from __future__ import annotations

import math

import torch

from voxelwave.data.augmentations import Volumes
from voxelwave.registry import AUGMENTATIONS


def add_noise(volume: Volumes, noise: Volumes) -> Volumes:
    """Add `noise`; the result may leave [0, 1], for clipping would shift the mean of the air."""
    return (volume + noise).to(volume.dtype).contiguous()


@AUGMENTATIONS.register("noise")
class GaussianNoise:
    """Adds noise of standard deviation `std`, in units of the scaled volume, to every voxel and channel.

    Raises ValueError for a std below 0.
    """

    def __init__(self, *, std: float = 0.01) -> None:
        if not 0 <= std < math.inf:
            raise ValueError(f"the std of noise is finite and at least 0 (no noise), got {std}")
        self.std = std

    def draw(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return the noise for `volume`, in single precision and on its device.

        Noise is as large as the batch: it is drawn where the batch is, from a generator seeded by `generator`.
        Each kind of device therefore has noise of its own.
        """
        if volume.device.type != "cpu":
            seed = int(torch.randint(2**63 - 1, (), generator=generator))
            generator = torch.Generator(volume.device).manual_seed(seed)
        noise = torch.empty(volume.shape, dtype=torch.float32, device=volume.device)
        return noise.normal_(0, self.std, generator=generator)

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume` with noise."""
        return add_noise(volume, self.draw(volume, generator))
