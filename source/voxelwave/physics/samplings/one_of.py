"""One of several samplings, drawn each time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from voxelwave.physics.samplings import Sampling


class OneOf:
    """Draws which of `samplings` chooses; each is as likely. Raises ValueError where there is none."""

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        if not samplings:
            raise ValueError("one of no samplings cannot be drawn")
        self.samplings = tuple(samplings)

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        drawn = int(torch.randint(len(self.samplings), (), generator=generator))
        return self.samplings[drawn](shape, generator)
