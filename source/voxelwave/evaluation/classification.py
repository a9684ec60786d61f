"""How well predictions tell classes apart: AUC, balanced accuracy, Dice of labels.

Written out, since an error by bootstrap asks for each of them hundreds of times, and scikit-learn takes 5 ms to look at
what it is given; the tests hold them against it.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.stats import rankdata

Labels = Int[ndarray, " sample"]


def area_under_curve(scores: Float[ndarray, " sample"], positive: Bool[ndarray, " sample"]) -> float:
    """Return the area under the ROC curve: how often a positive sample scores above a negative one; nan without both.

    Raises ValueError for scores that are not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite")
    number = int(positive.sum())
    if not 0 < number < len(positive):
        return math.nan
    # The statistic of Mann and Whitney; equal scores share their rank.
    above = rankdata(scores)[positive].sum() - number * (number + 1) / 2
    return float(above / (number * (len(positive) - number)))


def areas_under_curve(
    probabilities: Float[ndarray, "case target"], truth: Float[ndarray, "case target"]
) -> list[float]:
    """Return the area under the ROC curve of each target.

    Truth is 0 or 1, nan where it is not known; such cases do not count. A target of which all known cases are alike
    has no area: nan.
    """
    known = ~np.isnan(truth)
    return [
        area_under_curve(probabilities[rows, target], truth[rows, target] == 1) for target, rows in enumerate(known.T)
    ]


def balanced_accuracy(true: Labels, guessed: Labels) -> float:
    """Return the mean over the true classes of the share that is found."""
    both, of_true, _ = _counts(true, guessed)
    return float((both / of_true).mean())


def mean_dice(true: Labels, guessed: Labels) -> float:
    """Return the mean over the true classes of 2 × both / (true + guessed)."""
    both, of_true, of_guessed = _counts(true, guessed)
    return float((2 * both / (of_true + of_guessed)).mean())


def _counts(true: Labels, guessed: Labels) -> Int[ndarray, "3 class"]:
    """Return how often each true class is found, is there, and is guessed."""
    labels = np.unique(true)
    numbers = np.searchsorted(labels, guessed).clip(max=len(labels) - 1)
    known = labels[numbers] == guessed
    counts = (np.bincount(np.searchsorted(labels, of), minlength=len(labels)) for of in (true[true == guessed], true))
    return np.stack([*counts, np.bincount(numbers[known], minlength=len(labels))])
