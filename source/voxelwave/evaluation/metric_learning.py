"""How well embeddings tell phantoms apart: distances of triplets, and clusters; all of vectors of unit length."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from voxelwave.evaluation.retrieval import Embeddings, unit_rows
from voxelwave.ops.seeding import key_to_seed


def triplet_scores(same1: Embeddings, same2: Embeddings, diff: Embeddings, *, margin: float) -> dict[str, float]:
    """Return the means of d_pos, d_neg and the triplet loss, and `violations`, the share with d_pos + margin > d_neg.

    d_pos and d_neg are the Euclidean distances of each unit vector of `same1` from those of `same2` and of `diff`.
    Raises ValueError for embeddings that are not finite.
    """
    first, second, other = (unit_rows(x, name) for name, x in (("same1", same1), ("same2", same2), ("diff", diff)))
    d_pos, d_neg = np.linalg.norm(first - second, axis=1), np.linalg.norm(first - other, axis=1)
    return {
        "triplet_loss": float(np.maximum(d_pos - d_neg + margin, 0).mean()),
        "d_pos": float(d_pos.mean()),
        "d_neg": float(d_neg.mean()),
        "violations": float((d_pos + margin > d_neg).mean()),
    }


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
        found = means.fit_predict(unit_rows(embeddings))
    scores = {
        "NMI": normalized_mutual_info_score,
        "AMI": adjusted_mutual_info_score,
        "ARI": adjusted_rand_score,
    }
    return {name: float(score(numbers, found)) for name, score in scores.items()}
