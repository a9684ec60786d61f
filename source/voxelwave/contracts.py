"""What the parts of the package hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float, Int, Int8
from torch import Tensor

Grid = tuple[int, int, int]


class StepOutput(NamedTuple):
    """What an objective returns for one batch: the `loss` to minimise and detached scalars to log."""

    loss: Float[Tensor, ""]
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class MaskLevels:
    """The level of every token: 0 visible, 1 hidden by the global mask only (easy), 2 hidden by both (hard)."""

    levels: Int8[Tensor, "batch depth height width"]

    @property
    def visible(self) -> Bool[Tensor, "batch depth height width"]:
        """Tokens that the encoder sees."""
        return self.levels == 0

    @property
    def hidden(self) -> Bool[Tensor, "batch depth height width"]:
        """Tokens to predict, of either level."""
        return self.levels > 0

    @property
    def easy(self) -> Bool[Tensor, "batch depth height width"]:
        """Tokens hidden by the global level alone."""
        return self.levels == 1

    @property
    def hard(self) -> Bool[Tensor, "batch depth height width"]:
        """Tokens hidden by both levels."""
        return self.levels == 2


@runtime_checkable
class Masking(Protocol):
    """Draws which tokens of a grid are hidden, for each sample of a batch separately."""

    def __call__(self, grid: Grid, batch_size: int, generator: torch.Generator) -> MaskLevels:
        """Return the levels of `batch_size` grids."""
        ...


NumLines = int | Int[Tensor, " batch"] | Bool[Tensor, "batch width"] | None


@runtime_checkable
class Reconstruction(Protocol):
    """Makes an image of undersampled k-space; a trained network does, and so does a classical method."""

    def __call__(
        self,
        kspace: Complex[Tensor, "batch slice coil height width"],
        sampled: Bool[Tensor, "batch ... width"],
        num_low_frequencies: NumLines = None,
    ) -> Float[Tensor, "batch height width"]:
        """Return the magnitude of the centre slice, in the unit of the k-space.

        Args:
            kspace: of adjacent slices, centred and orthonormal as in `physics/fourier.py`. What is not sampled is not
                read.
            sampled: which lines, `[batch, width]`, or which places, `[batch, height, width]`, all slices alike.
            num_low_frequencies: how many lines around the origin are sampled without a gap, for each sample or for
                all, or which ones; where it is None, `sampled` tells.
        """
        ...
