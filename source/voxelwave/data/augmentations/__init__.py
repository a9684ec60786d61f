"""One file an augmentation: each changes a batch, every sample by itself, on the device that holds the batch.

A random augmentation draws its parameters on the CPU, so that every device sees the same, and hands them to the
deterministic function beside it. They are copied to the batch without waiting, for that would mean to wait until the
device has done all it was asked before. White noise alone is drawn where the batch is: it is as large as the batch.

One that moves voxels is a `SpatialAugmentation`: it moves labels alike, drawing the same from the same generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Volumes = Float[Tensor, "batch channel depth height width"]
Labels = UInt8[Tensor, "batch channel depth height width"]


@runtime_checkable
class Augmentation(Protocol):
    """Changes the samples of a batch at random, each in its own way."""

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume` augmented: contiguous, of the same shape, dtype and device.

        `volume` itself is not written to. The generator is on the CPU; the same state of it gives the same result.
        """
        ...


@runtime_checkable
class SpatialAugmentation(Augmentation, Protocol):
    """Moves voxels, and labels with them."""

    def moved(self, labels: Labels, generator: torch.Generator) -> Labels:
        """Return `labels`, moved as a call with a generator of the same state moves volumes, without interpolation."""
        return self(labels.float(), generator).byte()


class Augment:
    """Augmentations one after the other, all drawn from one generator.

    Args:
        steps: in the order in which they are applied. A windowed CT is clipped, so a narrower window goes before what
            leaves [0, 1], such as noise.
    """

    def __init__(self, steps: Sequence[Augmentation]) -> None:
        self.steps = tuple(steps)

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume` after every step; without any step, `volume` itself where it is contiguous."""
        for step in self.steps:
            volume = step(volume, generator)
        return volume.contiguous()
