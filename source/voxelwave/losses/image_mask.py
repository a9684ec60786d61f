"""Which pixels of a reconstruction count: those of the anatomy and of what it encloses."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Anatomy = Literal["brain", "knee"]
# In the unit of fastMRI's images.
THRESHOLDS: dict[Anatomy, float] = {"brain": 5e-5, "knee": 2e-5}

Mask = Bool[Tensor, "slice height width"]


def challenge_mask(target: Float[Tensor, "slice height width"], *, anatomy: Anatomy) -> Mask:
    """Return where `target` shows anatomy, in each slice: above a threshold, less specks, with gaps closed.

    Source: the reconstruction challenge's evaluation: 3 × 3 erosion once, dilation 15 times, erosion 14 times.
    """
    return erode(dilate(erode(target > THRESHOLDS[anatomy], times=1), times=15), times=14)


def dilate(inside: Mask, *, times: int) -> Mask:
    """Grow by `times` pixels in all eight directions. What lies outside of the image counts as 0."""
    # A square is a row of a column, and the maximum pads by what never is the largest.
    grown = F.max_pool2d(inside[:, None].float(), (2 * times + 1, 1), stride=1, padding=(times, 0))
    return F.max_pool2d(grown, (1, 2 * times + 1), stride=1, padding=(0, times))[:, 0] > 0


def erode(inside: Mask, *, times: int) -> Mask:
    """Shrink by `times` pixels from all eight directions. What lies outside of the image counts as 1, as in OpenCV."""
    return ~dilate(~inside, times=times)
