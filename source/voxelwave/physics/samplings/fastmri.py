"""The five kinds of masks of the fastMRI challenge, bit for bit."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray
from torch import Tensor

from voxelwave.physics.samplings import center_band, check_acceleration, check_settings
from voxelwave.registry import SAMPLINGS

Kind = Literal["random", "equispaced", "equispaced_fraction", "magic", "magic_fraction"]
Choices = float | tuple[float, ...]


@SAMPLINGS.register("fastmri")
class FastMRILines:
    """Samples the lines that the package `fastmri` (0.3) samples for the same numbers of NumPy's RandomState.

    Beside the round(center_fraction × width) lines at the centre are sampled

    - random: each line with the probability that gives width / acceleration in all, on average;
    - equispaced: every `acceleration`-th line from a random offset;
    - equispaced_fraction: lines whose distance makes width / acceleration in all, rounded, so that gaps differ;
    - magic: every `acceleration`-th line, those left of the origin between the mirrored ones of the right;
    - magic_fraction: alike, with about width / acceleration in all.

    Given several accelerations, and as many centre fractions, each draw takes one of the pairs. Where the centre alone
    has width / acceleration lines or more, nothing is added to it.

    Raises ValueError for settings out of range. Source: Zbontar et al., fastMRI, 2018, section 4; Defazio, Offset
    Sampling Improves Deep Learning based Accelerated MRI, 2019, for magic.
    """

    def __init__(self, *, kind: Kind = "random", acceleration: Choices = 4.0, center_fraction: Choices = 0.08) -> None:
        rates, fractions = (
            value if isinstance(value, tuple) else (value,) for value in (acceleration, center_fraction)
        )
        if len(rates) != len(fractions) or not rates:
            raise ValueError(f"as many accelerations as centre fractions are needed, got {rates} and {fractions}")
        for rate, fraction in zip(rates, fractions, strict=True):
            check_settings(rate, fraction, exact_axes=int(kind in ("random", "equispaced_fraction")))
            if kind in ("equispaced", "magic") and rate != round(rate):
                raise ValueError(f"acceleration must be a whole number for kind '{kind}', got {rate}")
        self.kind, self.pairs = kind, tuple(zip(rates, fractions, strict=True))

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        seed = int(torch.randint(2**32, (), generator=generator))
        return self._repeated(shape, np.random.RandomState(seed))

    def of_file(self, shape: tuple[int, int], name: str) -> Bool[Tensor, "height width"]:
        """Return the choice that fastMRI's validation makes for the file of this `name`, without its folder."""
        return self._repeated(shape, np.random.RandomState(tuple(map(ord, name))))

    def lines(self, width: int, random: np.random.RandomState) -> Bool[ndarray, " width"]:
        """Return which of `width` lines are sampled."""
        # 1. The order of the draws is fastMRI's: the pair, then the offset or the lines.
        acceleration, center_fraction = self.pairs[random.randint(len(self.pairs))]
        check_acceleration(acceleration, width)
        num_center = round(width * center_fraction)
        if self.kind == "magic_fraction":
            wanted = round(width / acceleration)
            num_center = max(min(num_center, wanted), 1)
            acceleration = round(width / (wanted - num_center)) if wanted > num_center else 0
        # 2. The lines beside the centre.
        if self.kind.startswith("magic"):
            sampled = _mirrored(width, int(acceleration), random)
        elif self.kind == "equispaced":
            sampled = np.arange(width) % int(acceleration) == random.randint(0, high=int(acceleration))
        elif num_center * acceleration >= width:
            sampled = np.zeros(width, dtype=bool)
        elif self.kind == "random":
            share = (width / acceleration - num_center) / (width - num_center)
            sampled = random.uniform(size=width) < share
        else:
            spacing = acceleration * (num_center - width) / (num_center * acceleration - width)
            places = np.arange(random.randint(0, high=round(spacing)), width - 1, spacing)
            sampled = np.isin(np.arange(width), np.around(places))
        # 3. The centre.
        sampled[center_band(width, num_center / width)] = True
        return sampled

    def _repeated(self, shape: tuple[int, int], random: np.random.RandomState) -> Bool[Tensor, "height width"]:
        height, width = shape
        return torch.from_numpy(self.lines(width, random)).repeat(height, 1)


def _mirrored(width: int, acceleration: int, random: np.random.RandomState) -> Bool[ndarray, " width"]:
    """Return every `acceleration`-th line from an offset, another one on each side of the origin; 0 gives none."""
    sampled = np.zeros(width, dtype=bool)
    if acceleration:
        offset = int(random.randint(0, high=acceleration))
        right, left = (offset + 2, offset - 1) if offset % 2 else (offset + 1, offset + 2)
        sampled[width // 2 :][right::acceleration] = True
        sampled[: width // 2][::-1][left::acceleration] = True
    return sampled
