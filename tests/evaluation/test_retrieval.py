from itertools import permutations

import numpy as np
import pytest

from voxelwave.evaluation.retrieval import chance_of_recall, retrieval


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


@pytest.mark.parametrize("rank", [1, 2, 4, 9])
def test_chance_is_the_share_of_all_orders_with_an_own_crop_among_the_first(rank):
    others = [0] * 2 + [1] * 3 + [2] * 3  # three crops of each of three scans, without the one that asks
    orders = list(permutations(range(8), min(rank, 4)))
    hits = sum(any(others[place] == 0 for place in order) for order in orders)
    assert chance_of_recall(3, 3, rank) == pytest.approx(hits / len(orders) if rank < 9 else 1.0)


def test_one_scan_or_one_crop_cannot_be_told_apart():
    for shape in ((1, 4, 3), (4, 1, 3)):
        with pytest.raises(ValueError, match="two scans and two crops"):
            retrieval(np.ones(shape, dtype=np.float32))
