"""How well a segmentation agrees with the truth, class by class: Dice and the 95 % Hausdorff distance, by MONAI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Integer
from numpy import ndarray
from scipy.ndimage import find_objects

PERCENTILE = 95


def score_segmentation(
    predicted: Integer[ndarray, "depth height width"],
    truth: Integer[ndarray, "..."],
    *,
    num_classes: int,
    spacing_mm: Sequence[float],
) -> dict[str, list[float]]:
    """Return `dice` and `hd95_mm`, each with one number for every class 1…num_classes-1.

    A class that neither holds has no score: nan. One that only one of them holds has a Dice of 0, and no distance: nan
    (MONAI calls it infinite, and a mean over cases with one of those says nothing of the others). The distance is
    between surface voxels, the larger of the two directed 95th percentiles.

    Raises ValueError for arrays of two shapes, or a value outside 0…num_classes-1.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"a prediction {predicted.shape} is scored against a truth of its shape, got {truth.shape}")
    for name, array in (("prediction", predicted), ("truth", truth)):
        if array.size and (array.min() < 0 or array.max() >= num_classes):
            raise ValueError(f"the {name} holds values of 0…{num_classes - 1}, got {array.min()} to {array.max()}")
    scores: dict[str, list[float]] = {"dice": [], "hd95_mm": []}
    # 1. The boxes of all classes in one pass, so that each class costs what its own box holds.
    boxes = zip(*(_boxes(array, num_classes) for array in (predicted, truth)), strict=True)
    for label, (own, true) in enumerate(boxes, start=1):
        if own is None or true is None:
            scores["dice"].append(math.nan if own is true else 0.0)
            scores["hd95_mm"].append(math.nan)
            continue
        # 2. Both scores in the box around both masks; no distance between them leaves it.
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(own, true, strict=True))
        dice, distance = _scored(predicted[box] == label, truth[box] == label, [float(side) for side in spacing_mm])
        scores["dice"].append(dice)
        scores["hd95_mm"].append(distance)
    return scores


def _boxes(array: Integer[ndarray, "..."], num_classes: int) -> list[tuple[slice, ...] | None]:
    """Return the bounding box of each class 1…num_classes-1, None where there is none of it."""
    boxes: list[tuple[slice, ...] | None] = find_objects(array.astype("int32"), max_label=num_classes - 1)
    return boxes


def _scored(
    predicted: Bool[ndarray, "d h w"], truth: Bool[ndarray, "d h w"], spacing_mm: list[float]
) -> tuple[float, float]:
    # Importing MONAI takes seconds.
    from monai.metrics import compute_dice, compute_hausdorff_distance

    own, true = (torch.from_numpy(mask)[None, None] for mask in (predicted, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it passes itself
        distance = compute_hausdorff_distance(
            own, true, include_background=True, percentile=PERCENTILE, spacing=spacing_mm
        )
    return float(compute_dice(own, true)), float(distance)
