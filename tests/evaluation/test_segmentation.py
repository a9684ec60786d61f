import math
from itertools import product

import monai.metrics
import numpy as np
import pytest

from voxelwave.evaluation.segmentation import score_segmentation

ANISOTROPIC = (1.0, 2.5, 0.7)


def surface(mask):
    """Voxels of `mask` with one of six neighbours outside it, or outside the array."""
    found = []
    for place in np.argwhere(mask):
        for axis, step in product(range(3), (-1, 1)):
            beside = place.copy()
            beside[axis] += step
            if not (0 <= beside[axis] < mask.shape[axis]) or not mask[tuple(beside)]:
                found.append(place)
                break
    return np.array(found)


def hd95(first, second, spacing_mm):
    """The larger of the two directed 95th percentiles, by comparing each surface voxel with every other."""
    own, other = (surface(mask) * np.array(spacing_mm) for mask in (first, second))
    distances = np.array([[math.dist(a, b) for b in other] for a in own])
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


def two_maps(generator, shape=(9, 8, 10)):
    """Blocks of four classes, and the same with a sixth of the voxels changed."""
    truth = np.kron(generator.integers(0, 4, (3, 2, 5)), np.ones((3, 4, 2), dtype=np.int64))
    return np.where(generator.random(shape) < 1 / 6, generator.integers(0, 4, shape), truth), truth


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_sets_and_of_a_loop_over_surfaces(seed):
    predicted, truth = two_maps(np.random.default_rng(seed))
    scores = score_segmentation(predicted, truth, num_classes=4, spacing_mm=ANISOTROPIC)
    for label in (1, 2, 3):
        own, true = (set(map(tuple, np.argwhere(array == label))) for array in (predicted, truth))
        assert scores["dice"][label - 1] == pytest.approx(2 * len(own & true) / (len(own) + len(true)))
        expected = hd95(predicted == label, truth == label, ANISOTROPIC)
        assert scores["hd95_mm"][label - 1] == pytest.approx(expected, rel=1e-5)


def test_a_cube_moved_along_one_axis():
    truth = np.zeros((20, 20, 20), dtype=np.uint8)
    truth[4:12, 4:12, 4:12] = 1
    predicted = np.roll(truth, 2, axis=1)
    scores = score_segmentation(predicted, truth, num_classes=2, spacing_mm=ANISOTROPIC)
    # Six of eight planes overlap; the far face, more than 5 % of the surface, is two voxels of 2.5 mm away.
    assert scores == {"dice": [pytest.approx(6 / 8)], "hd95_mm": [pytest.approx(5.0)]}


def test_a_class_that_is_nowhere_has_no_score_and_one_that_is_missed_has_a_dice_of_0():
    truth, predicted = np.zeros((2, 6, 6, 6), dtype=np.int16)
    truth[1:3], predicted[1:3] = 1, 1
    truth[4, 4, 4], predicted[5, 0, 0] = 2, 3
    scores = score_segmentation(predicted, truth, num_classes=5, spacing_mm=(1, 1, 1))
    np.testing.assert_array_equal(scores["dice"], [1, 0, 0, math.nan])
    np.testing.assert_array_equal(scores["hd95_mm"], [0, math.nan, math.nan, math.nan])


def test_what_cannot_be_compared_is_refused():
    small = np.zeros((2, 2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"a prediction \(2, 2, 2\) is scored against a truth of its shape"):
        score_segmentation(small, np.zeros((2, 2, 3), dtype=np.uint8), num_classes=2, spacing_mm=(1, 1, 1))
    with pytest.raises(ValueError, match=r"the truth holds values of 0…1, got 2 to 2"):
        score_segmentation(small, small + 2, num_classes=2, spacing_mm=(1, 1, 1))


def test_a_class_costs_what_its_own_box_holds(monkeypatch):
    measured = []

    def recorded(own, *others, **options):
        measured.append(tuple(own.shape[2:]))
        return metric(own, *others, **options)

    metric = monai.metrics.compute_hausdorff_distance
    monkeypatch.setattr(monai.metrics, "compute_hausdorff_distance", recorded)
    truth = np.zeros((96, 96, 96), dtype=np.uint8)
    truth[3:13, 3:13, 3:13], truth[40:45, 50:54, 60:63] = 1, 2
    score_segmentation(np.roll(truth, 3, axis=2), truth, num_classes=6, spacing_mm=(1, 1, 1))
    assert measured == [(10, 10, 13), (5, 4, 6)]
