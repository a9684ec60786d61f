import math

import numpy as np
import pytest

from voxelwave.evaluation.metric_learning import cluster_scores, triplet_scores
from voxelwave.ops.seeding import numpy_generator


def vectors(*shape, key=0):
    return numpy_generator(key).normal(size=shape).astype(np.float32)


def unit(vector):
    return [float(x) / math.hypot(*vector.tolist()) for x in vector]


def test_scores_of_triplets_are_those_of_plain_loops():
    same1, diff = vectors(40, 6), vectors(40, 6, key=1)
    same2 = same1 + vectors(40, 6, key=2)
    pairs = []
    for one, two, other in zip(same1, same2, diff, strict=True):
        pairs.append((math.dist(unit(one), unit(two)), math.dist(unit(one), unit(other))))
    scores = triplet_scores(same1, same2, diff, margin=0.3)
    assert scores == pytest.approx(
        {
            "triplet_loss": sum(max(pos - neg + 0.3, 0) for pos, neg in pairs) / 40,
            "d_pos": sum(pos for pos, _ in pairs) / 40,
            "d_neg": sum(neg for _, neg in pairs) / 40,
            "violations": sum(pos + 0.3 > neg for pos, neg in pairs) / 40,
        },
        abs=1e-6,
    )
    assert 0.1 < scores["violations"] < 0.9


def test_scores_of_a_triplet_at_right_angles_are_known():
    first, right, opposite = np.array([[2.0, 0]]), np.array([[0, 5.0]]), np.array([[-1.0, 0]])
    root = math.sqrt(2)
    known = {"triplet_loss": 0.0, "d_pos": root, "d_neg": 2.0, "violations": 0.0}
    assert triplet_scores(first, right, opposite, margin=0.2) == pytest.approx(known)
    known = {"triplet_loss": 2.2 - root, "d_pos": 2.0, "d_neg": root, "violations": 1.0}
    assert triplet_scores(first, opposite, right, margin=0.2) == pytest.approx(known)


def test_phantoms_apart_are_found_by_clusters():
    numbers = np.repeat([4, 9, 2, 7], 5)
    apart = 4 * np.eye(4)[np.repeat(np.arange(4), 5)] + 0.1 * vectors(20, 4)
    assert cluster_scores(apart, numbers) == pytest.approx({"NMI": 1.0, "AMI": 1.0, "ARI": 1.0})
    assert cluster_scores(apart, numbers) == cluster_scores(apart * vectors(20, 1, key=1) ** 2, numbers)


def test_two_phantoms_in_one_place_score_what_their_definitions_say():
    # Clusters {a}, {b and half of c}, {half of c}: entropies and pairs counted by hand.
    places = np.repeat(np.eye(3), [4, 6, 2], axis=0)
    numbers = np.repeat([0, 1, 2], 4)
    counts = np.array([[4, 0, 0], [0, 4, 0], [0, 2, 2]]) / 12
    rows, columns = counts.sum(1), counts.sum(0)
    mutual = sum(p * math.log(p / (rows[i] * columns[j])) for (i, j), p in np.ndenumerate(counts) if p)
    entropies = [-sum(p * math.log(p) for p in side) for side in (rows, columns)]
    together, of_numbers, of_clusters, every = 6 + 6 + 1 + 1, 18, 6 + 15 + 1, 66
    chance = of_numbers * of_clusters / every
    found = cluster_scores(places, numbers)
    assert found["NMI"] == pytest.approx(mutual / np.mean(entropies))
    assert found["ARI"] == pytest.approx((together - chance) / ((of_numbers + of_clusters) / 2 - chance))


def test_guesses_score_nothing_where_chance_is_taken_off_and_much_where_it_is_not():
    numbers = np.repeat(np.arange(60), 3)
    guessed = cluster_scores(vectors(180, 16), numbers)
    assert abs(guessed["AMI"]) < 0.05
    assert abs(guessed["ARI"]) < 0.03
    assert guessed["NMI"] > 0.6
    assert cluster_scores(np.ones((180, 16)), numbers) == {"NMI": 0.0, "AMI": 0.0, "ARI": 0.0}


def test_what_cannot_be_scored_is_named():
    good, bad = vectors(6, 3), vectors(6, 3)
    bad[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"row 4 of diff is not \(1 of 6 rows\)"):
        triplet_scores(good, good, bad, margin=0.2)
    with pytest.raises(ValueError, match="row 4 of embeddings"):
        cluster_scores(bad, np.repeat(np.arange(3), 2))
    for numbers in (np.arange(6), np.zeros(6, dtype=int)):
        with pytest.raises(ValueError, match="two phantoms and several views"):
            cluster_scores(good, numbers)
