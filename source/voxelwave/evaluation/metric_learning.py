"""How well embeddings tell phantoms apart: distances of triplets, Recall@K, clusters; all of vectors of unit length."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from voxelwave.ops.seeding import key_to_seed

Embeddings = Float[ndarray, "sample dim"]

RANKS = (1, 5)
BLOCK = 512  # queries at a time: 40 MB of similarities for a gallery of 10,000
TIED = 1e-9  # of cosines; products of equal vectors differ by some 1e-16


def triplet_scores(same1: Embeddings, same2: Embeddings, diff: Embeddings, *, margin: float) -> dict[str, float]:
    """Return the means of d_pos, d_neg and the triplet loss, and `violations`, the share with d_pos + margin > d_neg.

    d_pos and d_neg are the Euclidean distances of each unit vector of `same1` from those of `same2` and of `diff`.
    Raises ValueError for embeddings that are not finite.
    """
    first, second, other = (_unit(name, x) for name, x in (("same1", same1), ("same2", same2), ("diff", diff)))
    d_pos, d_neg = np.linalg.norm(first - second, axis=1), np.linalg.norm(first - other, axis=1)
    return {
        "triplet_loss": float(np.maximum(d_pos - d_neg + margin, 0).mean()),
        "d_pos": float(d_pos.mean()),
        "d_neg": float(d_neg.mean()),
        "violations": float((d_pos + margin > d_neg).mean()),
    }


def recall_at(queries: Embeddings, gallery: Embeddings, ranks: Sequence[int] = RANKS) -> dict[int, float]:
    """Return by rank k the share of queries whose own row of the gallery is among the k nearest of all, by cosine.

    Rows that lie as near as the own one come in any order: a query counts with the chance that its own comes soon
    enough, so that embeddings that are all the same score k / number of rows, as guessing does.
    Raises ValueError for embeddings that are not finite, and for a rank below 1.
    """
    if min(ranks) < 1:
        raise ValueError(f"ranks begin at 1, got {tuple(ranks)}")
    asking, asked = _unit("queries", queries), _unit("gallery", gallery)
    hits = dict.fromkeys(ranks, 0.0)
    for start in range(0, len(asking), BLOCK):
        similarity = asking[start : start + BLOCK] @ asked.T
        row = np.arange(len(similarity))
        above = similarity - similarity[row, start + row][:, None]
        nearer, tied = (above > TIED).sum(1), (np.abs(above) <= TIED).sum(1)  # the own one ties with itself
        for rank in ranks:
            hits[rank] += float(np.clip((rank - nearer) / tied, 0, 1).sum())
    return {rank: hit / len(asking) for rank, hit in hits.items()}


def cluster_scores(embeddings: Embeddings, numbers: Int[ndarray, " sample"], *, seed: int = 0) -> dict[str, float]:
    """Return how well k-means finds the phantoms by several views of each: NMI, AMI and ARI, 1 where it finds all.

    `numbers` says which phantom each row shows. Guessing scores 0 in AMI and ARI. NMI is not adjusted for chance: it is
    high for guesses, too, where there are many phantoms of few views.

    Raises ValueError for fewer than two phantoms, one view of each, or embeddings that are not finite.
    Source: Vinh, Epps and Bailey, Information Theoretic Measures for Clusterings Comparison, 2010.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    phantoms = len(np.unique(numbers))
    if not 2 <= phantoms < len(numbers):
        raise ValueError(f"clusters need two phantoms and several views, got {len(numbers)} views of {phantoms}")
    with warnings.catch_warnings():
        # Collapsed embeddings have fewer places than there are phantoms: that is what the scores say.
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(phantoms, n_init=10, random_state=key_to_seed(seed, "clusters") % 2**32)
        found = means.fit_predict(_unit("embeddings", embeddings))
    scores = {
        "NMI": normalized_mutual_info_score,
        "AMI": adjusted_mutual_info_score,
        "ARI": adjusted_rand_score,
    }
    return {name: float(score(numbers, found)) for name, score in scores.items()}


def _unit(name: str, embeddings: Embeddings) -> Embeddings:
    """Return the rows at unit length in double precision; those of length 0 stay 0."""
    wide = embeddings.astype(np.float64)
    if len(bad := np.flatnonzero(~np.isfinite(wide).all(1))):
        raise ValueError(f"embeddings must be finite, row {bad[0]} of {name} is not ({len(bad)} of {len(wide)} rows)")
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(length > 0, length, 1))
