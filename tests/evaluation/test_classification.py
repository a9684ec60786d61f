import math

import numpy as np
import pytest

from voxelwave.evaluation.classification import area_under_curve, areas_under_curve, balanced_accuracy, mean_dice


def by_pairs(probabilities, truth):
    """The share of pairs of a true and a false case that are in order; a tie is half a pair."""
    true, false = probabilities[truth == 1], probabilities[truth == 0]
    return np.mean([(a > b) + 0.5 * (a == b) for a in true for b in false])


def test_an_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 6, (40, 3)) / 5  # with ties
    truth = rng.integers(0, 2, (40, 3)).astype(float)
    truth[rng.random((40, 3)) < 0.3] = np.nan
    expected = [by_pairs(probabilities[:, target], truth[:, target]) for target in range(3)]
    assert areas_under_curve(probabilities, truth) == pytest.approx(expected)


def test_all_measures_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score, recall_score, roc_auc_score

    rng = np.random.default_rng(1)
    for _ in range(50):
        number = rng.integers(5, 200)
        true, guessed = rng.integers(0, rng.integers(2, 6), number), rng.integers(-1, 7, number)
        asked = {"labels": np.unique(true), "average": "macro", "zero_division": 0}
        assert balanced_accuracy(true, guessed) == pytest.approx(recall_score(true, guessed, **asked), abs=1e-12)
        assert mean_dice(true, guessed) == pytest.approx(f1_score(true, guessed, **asked), abs=1e-12)
        scores, positive = rng.normal(size=number).round(1), true == true[0]
        if not positive.all():
            expected = roc_auc_score(positive, scores)
            assert area_under_curve(scores, positive) == pytest.approx(expected, abs=1e-12)


def test_scores_that_are_not_finite_have_no_order():
    with pytest.raises(ValueError, match="not finite"):
        area_under_curve(np.array([0.1, np.nan]), np.array([True, False]))


@pytest.mark.parametrize("column", [[1, 1, 1], [0, 0, np.nan], [np.nan] * 3])
def test_a_target_of_one_class_has_no_area(column):
    truth = np.array([column, [0, 1, 1]], dtype=float).T
    areas = areas_under_curve(np.array([[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]), truth)
    assert math.isnan(areas[0])
    assert areas[1] == 1.0


def test_shares_and_dice_are_means_over_the_true_classes():
    true, guessed = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 5, 0])
    assert balanced_accuracy(true, guessed) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert mean_dice(true, guessed) == pytest.approx((6 / 8 + 2 / 4 + 0) / 3)
