import tracemalloc
from itertools import permutations

import numpy as np
import pytest

from voxelwave.evaluation.retrieval import BLOCK, chance_of_recall, recall_at, retrieval
from voxelwave.ops.seeding import numpy_generator


def vectors(*shape, key=0):
    return numpy_generator(key).normal(size=shape).astype(np.float32)


def test_recall_counts_as_plain_loops_do():
    embeddings = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
    embeddings += np.random.default_rng(1).normal(size=(6, 1, 4)).astype(np.float32)
    hits = {1: 0, 5: 0}
    crops = [(scan, vector) for scan, of in enumerate(embeddings.astype(np.float64)) for vector in of]
    for i, (scan, vector) in enumerate(crops):
        others = sorted(
            (-vector @ other / np.linalg.norm(vector) / np.linalg.norm(other), of != scan)
            for j, (of, other) in enumerate(crops)
            if j != i
        )
        for rank in hits:
            hits[rank] += any(not foreign for _, foreign in others[:rank])
    found = retrieval(embeddings)
    assert found["Recall@1"].value == pytest.approx(hits[1] / 18)
    assert found["Recall@5"].value == pytest.approx(hits[5] / 18)
    assert 0 < hits[1] < hits[5] < 18


def test_scans_apart_are_found_and_a_length_means_nothing():
    directions = np.eye(5, dtype=np.float32)[:, None]
    embeddings = directions * np.array([1.0, 7.0, 0.2], dtype=np.float32)[None, :, None]
    assert retrieval(embeddings)["Recall@1"].value == 1.0
    assert retrieval(embeddings)["Recall@1"].error == 0.0


def test_a_crop_does_not_find_itself():
    # Each crop points its own way, and the nearest other one is of the other scan.
    embeddings = np.array([[[1, 0.1], [-1, 0.1]], [[1, -0.1], [-1, -0.1]]], dtype=np.float32)
    assert retrieval(embeddings)["Recall@1"].value == 0.0


def test_crops_that_are_all_alike_score_what_guessing_does():
    for rank, found in zip((1, 5), retrieval(np.ones((4, 3, 2), dtype=np.float32)).values(), strict=True):
        assert found.value == pytest.approx(found.chance) == pytest.approx(chance_of_recall(11, 2, rank))


@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_chance_is_the_share_of_all_orders_with_an_own_crop_among_the_first(rank):
    others = [0] * 2 + [1] * 3 + [2] * 3  # three crops of each of three scans, without the one that asks
    orders = list(permutations(range(8), min(rank, 4)))
    hits = sum(any(others[place] == 0 for place in order) for order in orders)
    assert chance_of_recall(8, 2, rank) == pytest.approx(hits / len(orders) if rank < 9 else 1.0)


def test_one_scan_or_one_crop_cannot_be_told_apart():
    for shape in ((1, 4, 3), (4, 1, 3)):
        with pytest.raises(ValueError, match="two scans and two crops"):
            retrieval(np.ones(shape, dtype=np.float32))


@pytest.mark.parametrize("rows", [30, BLOCK, BLOCK + 3])
def test_recall_is_that_of_plain_sorting(rows):
    queries = vectors(rows, 8)
    gallery = 3 * (queries + 1.5 * vectors(rows, 8, key=1))
    hits = dict.fromkeys((1, 2, 5), 0)
    normed = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    for own, query in enumerate(queries):
        order = np.argsort(np.linalg.norm(normed - query / np.linalg.norm(query), axis=1))
        for rank in hits:
            hits[rank] += own in order[:rank]
    found = recall_at(queries, gallery, ranks=(1, 2, 5))
    assert found == pytest.approx({rank: count / rows for rank, count in hits.items()})
    assert 0 < found[1] < found[5] < 1


def test_queries_that_each_find_the_next_ones_view_score_nothing_at_once_and_all_at_the_end():
    ring = np.eye(5, dtype=np.float32)
    gallery = np.roll(ring, 1, axis=0) + 0.1 * np.roll(ring, 2, axis=0) + 0.01 * ring
    assert recall_at(ring, gallery, ranks=(1, 5)) == {1: 0.0, 5: 1.0}
    assert recall_at(ring, 7 * ring) == {1: 1.0, 5: 1.0}


def test_collapsed_embeddings_score_what_guessing_does():
    collapsed = np.broadcast_to(vectors(1, 64), (700, 64)) * np.linspace(1, 2, 700, dtype=np.float32)[:, None]
    assert recall_at(collapsed, collapsed, ranks=(1, 7, 700)) == pytest.approx({1: 1 / 700, 7: 0.01, 700: 1.0})
    assert recall_at(np.zeros((4, 3)), np.zeros((4, 3)), ranks=(1, 9)) == pytest.approx({1: 0.25, 9: 1.0})


def test_random_embeddings_score_about_what_guessing_does():
    found = recall_at(vectors(2000, 16), vectors(2000, 16, key=1), ranks=(1, 100))
    assert found[1] < 0.005
    assert found[100] == pytest.approx(0.05, abs=0.02)


def test_similarities_of_a_block_are_in_memory_at_a_time():
    queries = vectors(4000, 4)
    tracemalloc.start()
    recall_at(queries, queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 4000 * 4000 / 2


def test_what_cannot_be_retrieved_is_named():
    good, bad = vectors(6, 3), vectors(6, 3)
    bad[4, 1] = np.nan
    with pytest.raises(ValueError, match="row 4 of gallery"):
        recall_at(good, bad)
    with pytest.raises(ValueError, match="ranks begin at 1"):
        recall_at(good, good, ranks=(0,))


def test_its_error_is_over_subjects_and_not_over_their_scans():
    # Of each subject all crops find each other, or none does: its four scans say nothing more than one.
    generator, errors = numpy_generator("subjects"), []
    for _ in range(40):
        found = generator.random(12) < 0.5
        unlike, alike = generator.normal(size=(48, 3, 32)), generator.normal(size=(48, 1, 32))
        embeddings = np.where(np.repeat(found, 4)[:, None, None], alike, unlike).astype(np.float32)
        subjects = np.repeat([f"sub{number}" for number in range(12)], 4).tolist()
        errors.append([retrieval(embeddings, given)["Recall@1"].error for given in (subjects, None)])
    of_subjects, of_scans = np.mean(errors, axis=0)
    assert of_subjects == pytest.approx(0.5 / 12**0.5, rel=0.1)  # of twelve throws of a coin, and little else
    assert of_scans == pytest.approx(of_subjects / 2, rel=0.1)


def test_of_one_subject_nothing_is_said_of_others():
    assert retrieval(vectors(4, 3, 8), ["sub0"] * 4)["Recall@1"].error is None
