"""How well probabilities tell the cases of a target from the others."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy import ndarray


def areas_under_curve(
    probabilities: Float[ndarray, "case target"], truth: Float[ndarray, "case target"]
) -> list[float]:
    """Return the area under the ROC curve of each target: how often one that has it is above one that has not.

    Truth is 0 or 1, nan where it is not known; such cases do not count. A target of which all known cases are alike
    has no area: nan.
    """
    from sklearn.metrics import roc_auc_score

    areas = []
    for column in range(truth.shape[1]):
        known = ~np.isnan(truth[:, column])
        true = truth[known, column]
        alike = len(np.unique(true)) < 2
        areas.append(math.nan if alike else float(roc_auc_score(true, probabilities[known, column])))
    return areas
