import math

import numpy as np
import pytest
import torch

from voxelwave.evaluation.overlap import dice_scores, mean_of_known
from voxelwave.evaluation.segmentation import score_segmentation


def test_scores_are_those_of_the_full_evaluation():
    rng = np.random.default_rng(0)
    for _ in range(5):
        # Of classes 1…5 the fourth is in neither, and the others in one or both.
        predicted, truth = (rng.choice([0, 0, 1, 2, 3, 5], (6, 7, 8)).astype(np.uint8) for _ in range(2))
        predicted[predicted == 3] = 0
        expected = score_segmentation(predicted, truth, num_classes=6, spacing_mm=(1, 1, 1))["dice"]
        scores = dice_scores(torch.from_numpy(predicted), torch.from_numpy(truth), num_classes=6)
        assert scores == pytest.approx(expected, nan_ok=True)
        assert scores[2] == 0
        assert math.isnan(scores[3])


def test_what_is_no_number_does_not_count():
    assert mean_of_known([0.2, math.nan, 0.4]) == pytest.approx(0.3)
    assert math.isnan(mean_of_known([math.nan]))
