"""Gauges of a representation that need no labels; both fall when features collapse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def effective_rank(features: Float[Tensor, "sample dim"]) -> float:
    """Return how many directions the centred features use: the exponential of the entropy of their singular values.

    1 means that all lie on a line, `dim` that all directions are used alike; no variation at all gives 0.
    Source: Roy and Vetterli, The effective rank, 2007.
    """
    centred = (features - features.mean(0)).double()
    singular = torch.linalg.eigvalsh(centred.T @ centred).clamp_min(0).sqrt()
    total = singular.sum()
    # Round-off leaves singular values of about 1e-8 of the features' size where nothing varies.
    if total <= 1e-6 * features.double().norm():
        return 0.0
    return float(torch.exp(torch.special.entr(singular / total).sum()))


def feature_std(features: Float[Tensor, "sample dim"]) -> float:
    """Return the mean standard deviation of unit-length features times √dim: about 1 when spread out, 0 when constant.

    Source: Chen and He, SimSiam, 2021, section 4.1.
    """
    unit = F.normalize(features.double(), dim=-1)
    return float(unit.std(0, correction=0).mean() * features.shape[1] ** 0.5)
