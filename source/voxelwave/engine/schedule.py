"""The learning rate as a function of the step, or of the validation losses so far, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, floor: float = 0.01) -> float:
    """Return the factor of the peak rate at `step`: a linear rise, then half a cosine down to `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def warmup_cosine_rate(peak: float, *, total_steps: int, warmup_share: float) -> Callable[[int], float]:
    """Return the learning rate as a function of the step: `warmup_cosine` of a share of the steps, times `peak`."""
    warmup_steps = round(warmup_share * total_steps)
    return lambda step: peak * warmup_cosine(step, total_steps=total_steps, warmup_steps=warmup_steps)


def plateau_factor(
    losses: Sequence[float], *, factor: float = 0.5, patience: int = 2, threshold: float = 1e-4, floor: float = 0.0
) -> float:
    """Return the factor of the first rate after epochs with these validation losses: it falls where they do not.

    Each time that more than `patience` losses in a row are not below the best by a share of `threshold`, the rate is
    multiplied by `factor`, down to `floor` of the first. A loss that is no number is no better. What torch's
    ReduceLROnPlateau does, but as a function of what was measured, so that a run has no scheduler to save.

    Raises ValueError for a factor or a floor outside 0…1, or a negative patience.
    """
    if not (0 < factor < 1 and 0 <= floor <= 1 and patience >= 0):
        raise ValueError(
            f"factor and floor must lie between 0 and 1, patience must be at least 0, "
            f"got {factor}, {floor} and {patience}"
        )
    rate, best, waited = 1.0, math.inf, 0
    for loss in losses:
        better = loss < best * (1 - threshold)
        best, waited = (loss, 0) if better else (best, waited + 1)
        if waited > patience:
            rate, waited = max(rate * factor, floor), 0
    return rate


def stalled(losses: Sequence[float], patience: int) -> bool:
    """Tell whether the lowest loss lies `patience` validations back, or more."""
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])
