"""Random 2D phantoms that look like axial slices of heads, and smooth phases: many at once, a generator for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from voxelwave.physics.phantoms2d.anatomy import paint_slices
from voxelwave.physics.phantoms2d.drawing import Draws, Numbers, Planes, coordinates

__all__ = ["DEVIATION", "MEAN", "draw_phantoms", "draw_phases", "equalised"]

SMALLEST = 16
MEAN, DEVIATION = 0.25, 0.28
NEWTON_STEPS = 6
# Pixels that are rendered at once: what fits into the cache of a core is done faster.
CHUNK_PIXELS = 2**17


def draw_phantoms(generators: Sequence[torch.Generator], *, size: int) -> Planes:
    """Draw a magnitude image for each generator: a head's slice with its own shape, folds, nuclei, ventricles, lesions.

    Every image has the mean `MEAN` and the standard deviation `DEVIATION`, so that neither tells two images apart. A
    phantom is the same in every batch, up to float rounding. Raises ValueError for a size below 16.
    """
    if size < SMALLEST:
        raise ValueError(f"a phantom needs at least {SMALLEST} pixels along its side, got {size}")
    step = max(1, CHUNK_PIXELS // size**2)
    chunks = [generators[start : start + step] for start in range(0, len(generators), step)]
    return torch.cat([equalised(paint_slices(Draws(chunk, size))) for chunk in chunks] or [torch.empty(0, size, size)])


def draw_phases(generators: Sequence[torch.Generator], *, size: int) -> Planes:
    """Draw a smooth phase map for each generator, in radians: an offset, a slope of half a turn at most, slow waves."""
    draws = Draws(generators, size)
    x, y = coordinates(size)
    slope = draws.number(-1, 1) * x + draws.number(-1, 1) * y
    return draws.number(-math.pi, math.pi) + math.pi / 2 * slope + 0.6 * draws.noise(3)


def equalised(images: Planes) -> Planes:
    """Return `images`, none below 0, raised to the powers and scaled by the factors that give `MEAN` and `DEVIATION`.

    The mean square over the squared mean grows with the power, from 1 / the share of pixels above 0; Newton's method
    finds the power for the ratio that is asked for. There is one where the share exceeds
    MEAN² / (MEAN² + DEVIATION²), which is 44 %.
    """
    logs = images.clamp_min(1e-18).log()
    wanted = math.log1p((DEVIATION / MEAN) ** 2)
    log_power = logs.new_zeros(len(images), 1, 1)
    for _ in range(NEWTON_STEPS):
        values = (log_power.exp() * logs).exp()
        squares = values * values
        mean, square = _mean(values), _mean(squares)
        slope = 2 * log_power.exp() * (_mean(squares * logs) / square - _mean(values * logs) / mean)
        log_power = log_power + ((wanted - square.log() + 2 * mean.log()) / slope).clamp(-0.7, 0.7)
    values = (log_power.exp() * logs).exp()
    return values * (MEAN / _mean(values))


def _mean(images: Planes) -> Numbers:
    return images.mean((1, 2), keepdim=True)
