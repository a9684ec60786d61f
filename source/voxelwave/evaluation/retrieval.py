"""Retrieval by cosine: whether the nearest samples are of the same scan or phantom. It needs no labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from voxelwave.evaluation.estimates import Estimate, estimate

Embeddings = Float[ndarray, "sample dim"]
Numbers = Int[ndarray, " sample"]

RANKS = (1, 5)
BLOCK = 512  # queries at a time: 40 MB of similarities for a gallery of 10,000
TIED = 1e-9  # of cosines; products of equal vectors differ by some 1e-16


def recall_at(queries: Embeddings, gallery: Embeddings, ranks: Sequence[int] = RANKS) -> dict[int, float]:
    """Return by rank k the share of queries whose own row of the gallery is among the k nearest of all, by cosine.

    Embeddings that are all the same score k / number of rows, as guessing does.
    Raises ValueError for embeddings that are not finite, and for a rank below 1.
    """
    if min(ranks) < 1:
        raise ValueError(f"ranks begin at 1, got {tuple(ranks)}")
    numbers = np.arange(len(queries))
    hits = _hits(unit_rows(queries, "queries"), unit_rows(gallery, "gallery"), numbers, ranks, itself=True)
    return dict(zip(ranks, hits.mean(0).tolist(), strict=True))


def retrieval(
    embeddings: Float[ndarray, "scan crop dim"],
    subjects: Sequence[str] | None = None,
    *,
    ranks: Sequence[int] = RANKS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return Recall@k: the share of crops with another crop of their scan among the k nearest of all others, by cosine.

    The error is over `subjects`, each scan's own, and none where there is one; without them scans count as subjects.
    Raises ValueError for fewer than two scans or two crops, and for embeddings that are not finite.
    """
    scans, crops, dim = embeddings.shape
    if scans < 2 or crops < 2:
        raise ValueError(f"retrieval needs two scans and two crops of each, got {scans} and {crops}")
    scan = np.repeat(np.arange(scans), crops)
    unit = unit_rows(embeddings.reshape(scans * crops, dim))
    groups = scan if subjects is None else np.repeat(np.array(subjects), crops)
    hits = _hits(unit, unit, scan, ranks, itself=False)
    found = {
        f"Recall@{rank}": estimate(
            lambda rows, of_rank=of_rank: float(of_rank[rows].mean()),  # type: ignore[misc]
            groups,
            chance=float(chance_of_recall(scans * crops - 1, crops - 1, rank)),
            seed=seed,
        )
        for rank, of_rank in zip(ranks, hits.T, strict=True)
    }
    if len(np.unique(groups)) > 1:
        return found
    return {name: replace(one, draws=None) for name, one in found.items()}  # all draws are the same


def chance_of_recall(others: int | Numbers, own: int | Numbers, rank: int | Numbers) -> Float[ndarray, "*sample"]:
    """Return how likely one of `own` is among the first `rank` of `others` (own ones included) in random order."""
    from scipy.stats import hypergeom

    return np.asarray(1 - hypergeom.pmf(0, others, own, np.minimum(rank, others)))


def unit_rows(embeddings: Embeddings, name: str = "embeddings") -> Float[ndarray, "sample dim"]:
    """Return the rows at unit length in double precision; those of length 0 stay 0.

    Raises ValueError for embeddings that are not finite.
    """
    wide = embeddings.astype(np.float64)
    if len(bad := np.flatnonzero(~np.isfinite(wide).all(1))):
        raise ValueError(f"embeddings must be finite, row {bad[0]} of {name} is not ({len(bad)} of {len(wide)} rows)")
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(length > 0, length, 1))


def _hits(
    queries: Embeddings, gallery: Embeddings, numbers: Numbers, ranks: Sequence[int], *, itself: bool
) -> Float[ndarray, "query rank"]:
    """Return how likely each query has a row of its own number among the k nearest, for each rank k.

    Row i of the gallery has the number of query i; `itself` says whether this row counts. Rows that lie as near as the
    nearest own one come in any order: a query counts with the chance that an own one comes soon enough.
    """
    hits = []
    for start in range(0, len(queries), BLOCK):
        similarity = queries[start : start + BLOCK] @ gallery.T
        own = numbers[start : start + BLOCK, None] == numbers
        if not itself:
            row = np.arange(len(similarity))
            similarity[row, start + row] = -np.inf
        best = np.where(own, similarity, -np.inf).max(1, keepdims=True)
        nearer, tied = (similarity > best + TIED).sum(1), np.abs(similarity - best) <= TIED
        chances = [chance_of_recall(tied.sum(1), (tied & own).sum(1), np.maximum(rank - nearer, 0)) for rank in ranks]
        hits.append(np.stack(chances, axis=1))
    return np.concatenate(hits)
