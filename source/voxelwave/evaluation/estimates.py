"""A measure with its standard error: how much it varies with the subjects that happened to be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from voxelwave.ops.seeding import numpy_generator

RESAMPLES = 300

Rows = Int[ndarray, " row"]


@dataclass(frozen=True)
class Estimate:
    """A statistic, what guessing would give, and the same statistic on draws of the subjects with replacement."""

    value: float
    chance: float | None = None
    draws: Callable[[], Float[ndarray, " draw"]] | None = None

    @property
    def error(self) -> float | None:
        """The standard error over scored subjects; how a classifier varies with those it was fitted on is left out.

        Draws that have no value, since they left a class without a sample, do not count.
        """
        if self.draws is None:
            return None
        drawn = self.draws()
        return float(np.std(drawn[~np.isnan(drawn)]))


def estimate(
    statistic: Callable[[Rows], float],
    groups: Shaped[ndarray, " row"],
    *,
    chance: float | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return `statistic` of all rows, and of the rows of groups drawn with replacement (the bootstrap of clusters).

    The draws depend on `seed` and the groups alone, so that two statistics of the same rows are computed of the same
    draws, as `gain` needs. They are made when the error is first asked for.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8.
    """

    @cache
    def draws() -> Float[ndarray, " draw"]:
        generator = numpy_generator(seed, "bootstrap")
        of_row = np.unique(groups, return_inverse=True)[1]
        sizes = np.bincount(of_row)
        rows = np.split(np.argsort(of_row, kind="stable"), np.cumsum(sizes)[:-1])
        drawn = (generator.integers(len(sizes), size=len(sizes)) for _ in range(resamples))
        return np.array([statistic(np.concatenate([rows[group] for group in draw])) for draw in drawn])

    return Estimate(statistic(np.arange(len(groups))), chance, draws)


def gain(ours: Estimate, theirs: Estimate) -> Estimate:
    """Return by how much one estimate is above another of the same rows; its error is that of the paired difference."""
    difference = ours.value - theirs.value
    if ours.draws is None or theirs.draws is None:
        return Estimate(difference)
    one, other = ours.draws, theirs.draws
    return Estimate(difference, 0.0, lambda: one() - other())
