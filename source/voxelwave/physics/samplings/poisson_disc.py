"""Scattered samples that keep their distance from each other, dense near the centre."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from voxelwave.physics.samplings import center_band, check_acceleration, check_settings, num_outer
from voxelwave.registry import SAMPLINGS

# What the distance is multiplied by when no place is left that keeps it.
RELAXATION = 0.95


@SAMPLINGS.register("poisson_disc")
class PoissonDisc:
    """Samples round(height × width / acceleration) places at random, apart from each other, and a centre block.

    The block, round(center_fraction × side) along each side, is full and part of that number. Elsewhere samples keep a
    distance proportional to 1 + `growth` × distance from the centre in half-sides. Its scale follows from their number:
    darts are thrown in random order, and the distance is lowered whenever none fits, until there are enough.

    Raises ValueError for settings out of range. Source: McCool and Fiume, Hierarchical Poisson disk sampling
    distributions, 1992; Vasanawala et al., 2011, for such samples in MRI.
    """

    def __init__(self, *, acceleration: float = 4.0, center_fraction: float = 0.08, growth: float = 2.0) -> None:
        check_settings(acceleration, center_fraction, exact_axes=2)
        if not 0 <= growth < math.inf:
            raise ValueError(f"growth must be at least 0 and finite, got {growth}")
        self.acceleration, self.center_fraction, self.growth = acceleration, center_fraction, growth

    def __call__(self, shape: tuple[int, int], generator: torch.Generator) -> Bool[Tensor, "height width"]:
        """Return where a k-space of `shape` is sampled."""
        height, width = shape
        check_acceleration(self.acceleration, height * width, of="places")
        sampled = np.zeros(shape, dtype=bool)
        sampled[tuple(center_band(side, self.center_fraction) for side in shape)] = True
        count = num_outer(height * width, int(sampled.sum()), self.acceleration)
        if count:
            order = torch.randperm(height * width, generator=generator).numpy()
            _throw_darts(sampled, _relative_spacing(shape, self.growth), order, count)
        return torch.from_numpy(sampled)


def _relative_spacing(shape: tuple[int, int], growth: float) -> Float[np.ndarray, "height width"]:
    """Return the distance that a sample keeps at each place, relative to that at the centre."""
    y, x = ((np.arange(side) - side // 2) * 2 / side for side in shape)
    spacing: Float[np.ndarray, "height width"] = 1 + growth * np.hypot(y[:, None], x)
    return spacing


def _throw_darts(
    sampled: Bool[np.ndarray, "height width"],
    spacing: Float[np.ndarray, "height width"],
    order: Int[np.ndarray, " place"],
    count: int,
) -> None:
    """Add `count` samples to `sampled`, in place, trying the places in their `order` at each distance."""
    # 1. Begin beyond what the densest packing, of 2 / √3 discs in a square of their distance, would have room for.
    distance = math.sqrt(1.2 * float((spacing[~sampled] ** -2).sum()) / count)
    reach = min(math.ceil(distance * float(spacing.max())), max(sampled.shape))
    # 2. How far each place is from the next sample; a margin saves cutting discs at the edge.
    to_sample = distance_transform_edt(~sampled) if sampled.any() else np.full(sampled.shape, np.inf)
    padded = np.pad(to_sample, reach)
    to_sample = padded[reach:-reach, reach:-reach]
    disc = np.hypot(*np.ogrid[-reach : reach + 1, -reach : reach + 1])
    while True:
        # 3. Take places in turn that keep the distance from all that were taken before.
        needed = distance * spacing
        for place in order[(to_sample >= needed).ravel()[order]].tolist():
            y, x = divmod(place, sampled.shape[1])
            if to_sample[y, x] < needed[y, x]:
                continue
            sampled[y, x] = True
            around = padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
            np.minimum(around, disc, out=around)
            count -= 1
            if count == 0:
                return
        # 4. The others have to stand a little closer.
        distance *= RELAXATION
