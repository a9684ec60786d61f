"""A figure with its standard error: what the subjects that happened to be measured make it vary by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from voxelwave.ops.seeding import numpy_generator

RESAMPLES = 300

Rows = Int[ndarray, " row"]


class Estimate(NamedTuple):
    """A statistic, what guessing would give, and the same statistic on `draws` of the subjects with replacement."""

    value: float
    chance: float | None = None
    draws: Float[ndarray, " draw"] | None = None

    @property
    def error(self) -> float | None:
        """The standard error over subjects; how a classifier would vary with those it was fitted on is not in it."""
        return None if self.draws is None else float(np.std(self.draws))


def estimate(
    statistic: Callable[[Rows], float], groups: Shaped[ndarray, " row"], *, chance: float | None = None, seed: int = 0
) -> Estimate:
    """Return `statistic` of all rows, and of the rows of groups drawn with replacement (the bootstrap of clusters).

    The draws follow from `seed` and the groups alone, so that those of two statistics of the same rows are pairs.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8.
    """
    generator = numpy_generator(seed, "bootstrap")
    names, of_row = np.unique(groups, return_inverse=True)
    rows = np.split(np.argsort(of_row, kind="stable"), np.cumsum(np.bincount(of_row))[:-1])
    draws = [
        statistic(np.concatenate([rows[group] for group in generator.integers(len(names), size=len(names))]))
        for _ in range(RESAMPLES)
    ]
    return Estimate(statistic(np.arange(len(groups))), chance, np.array(draws))


def gain(ours: Estimate, theirs: Estimate) -> Estimate:
    """Return by how much one estimate is above another of the same rows; the error is that of the pairs."""
    paired = ours.draws is not None and theirs.draws is not None
    return Estimate(ours.value - theirs.value, 0.0, ours.draws - theirs.draws if paired else None)  # type: ignore[operator]
