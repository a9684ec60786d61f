"""How well predictions tell classes apart, by scikit-learn: AUC, balanced accuracy, Dice of labels."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

Labels = Int[ndarray, " sample"]


def area_under_curve(scores: Float[ndarray, " sample"], positive: Bool[ndarray, " sample"]) -> float:
    """Return the area under the ROC curve: how often a positive sample scores above a negative one; nan without both.

    Raises ValueError for scores that are not finite.
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores)) if 0 < positive.sum() < len(positive) else math.nan


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
    from sklearn.metrics import recall_score

    return float(recall_score(true, guessed, labels=np.unique(true), average="macro"))


def mean_dice(true: Labels, guessed: Labels) -> float:
    """Return the mean over the true classes of 2 × both / (true + guessed)."""
    from sklearn.metrics import f1_score

    return float(f1_score(true, guessed, labels=np.unique(true), average="macro"))
