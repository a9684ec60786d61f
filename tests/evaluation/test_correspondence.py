import numpy as np
import pytest

from voxelwave.evaluation.correspondence import (
    Tokens,
    blind_mm,
    corresponding_place,
    distance_mm,
    guessed_share,
    most_alike,
    oracle_mm,
    same_place,
    there,
    within_one_token,
)


def tokens(side=4, step_mm=8.0, start_mm=(0.0, 0.0, 0.0), labels=None, box_mm=((0.0, 0, 0), (24.0, 24, 24))):
    places = np.argwhere(np.ones((side,) * 3))
    to_mm = np.diag([step_mm] * 3 + [1.0])
    to_mm[:3, 3] = start_mm
    labels = np.zeros(len(places), np.int64) if labels is None else labels
    return Tokens(places, to_mm, labels, np.array(box_mm))


def test_the_same_place_is_what_the_affines_say():
    one, other = tokens(), tokens(step_mm=4.0, start_mm=(2.0, 0.0, -4.0))
    np.testing.assert_allclose(same_place(one, other), (one.mm - (2, 0, -4)) / 4)


def test_a_place_of_another_head_lies_as_far_between_the_corners_of_its_box():
    one, other = tokens(), tokens(start_mm=(1.0, 1.0, 1.0), box_mm=((1.0, 1, 1), (49.0, 25, 13)))
    np.testing.assert_allclose(corresponding_place(one, other), one.places * (2.0, 1.0, 0.5))


def test_a_place_is_there_where_a_token_that_counts_lies():
    goal = tokens()
    goal = Tokens(goal.places[1:], goal.to_mm, goal.labels[1:], goal.box_mm)  # without the first corner
    asked = np.array([[0, 0, 0], [0.4, 0, 0.6], [3.4, 3, 3], [3.6, 3, 3], [-0.6, 0, 1], [1e15, 0, 0]])
    assert there(goal, asked).tolist() == [False, True, True, False, False, False]
    none = Tokens(goal.places[:0], goal.to_mm, goal.labels[:0], goal.box_mm)
    assert not there(none, asked).any()


def test_the_most_alike_is_that_of_the_highest_cosine():
    generator = np.random.default_rng(0)
    queries, gallery = generator.normal(size=(600, 5)), generator.normal(size=(40, 5))
    cosine = [
        [q @ g / np.linalg.norm(q) / np.linalg.norm(g) for g in gallery] for q in queries
    ]  # more than a block of queries
    assert np.array_equal(most_alike(queries, gallery), np.argmax(cosine, axis=1))


def test_guessing_blindness_and_the_oracle_are_those_of_plain_loops():
    labels = np.random.default_rng(0).integers(3, size=64)
    goal = tokens(labels=labels)
    places, asked = np.array([[0.2, 0, 0], [1.5, 2, 1.2]]), np.array([2, 7])
    expected = [np.mean([all(abs(a - b) <= 1 for a, b in zip(p, q, strict=True)) for q in goal.places]) for p in places]
    np.testing.assert_allclose(guessed_share(goal, places), expected)
    np.testing.assert_allclose(blind_mm(goal, places), 8 * np.linalg.norm(places - 1.5, axis=1))
    apart = 8 * np.linalg.norm(goal.places[:, None] - places, axis=2)
    # The second has a tissue that is not there: of it the nearest token of all is the best.
    np.testing.assert_allclose(oracle_mm(goal, places, asked), [apart[labels == 2, 0].min(), apart[:, 1].min()])
    np.testing.assert_allclose(distance_mm(goal, goal.places[:2], places), [8 * 0.2, apart[1, 1]])
    assert within_one_token(goal.places[:2], places).tolist() == [True, False]


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="gallery"):
        most_alike(np.ones((2, 3)), np.full((2, 3), np.nan))
