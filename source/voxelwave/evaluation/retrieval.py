"""Whether a part of a scan finds another part of the same scan: what is asked of features where nothing is labelled."""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from voxelwave.evaluation.estimates import Estimate, estimate
from voxelwave.evaluation.probing import cosines

RANKS = (1, 5)


def retrieval(
    embeddings: Float[ndarray, "scan crop dim"], *, ranks: tuple[int, ...] = RANKS, seed: int = 0
) -> dict[str, Estimate]:
    """Return Recall@k: the share of crops with another crop of their scan among the k nearest of all, by cosine.

    Raises ValueError for fewer than two scans or two crops.
    """
    scans, crops, _ = embeddings.shape
    if scans < 2 or crops < 2:
        raise ValueError(f"retrieval needs two scans and two crops of each, got {scans} and {crops}")
    scan = np.repeat(np.arange(scans), crops)
    similarity = cosines(embeddings.reshape(scans * crops, -1))
    np.fill_diagonal(similarity, -np.inf)  # a crop does not find itself
    own = scan[np.argsort(-similarity, axis=1, kind="stable")[:, :-1]] == scan[:, None]
    first = own.argmax(1)
    return {
        f"Recall@{rank}": estimate(
            lambda rows, rank=rank: float((first[rows] < rank).mean()),  # type: ignore[misc]
            *(scan,),
            chance=chance_of_recall(scans, crops, rank),
            seed=seed,
        )
        for rank in ranks
    }


def chance_of_recall(scans: int, crops: int, rank: int) -> float:
    """Return Recall@k where the order is random: one less that none of k of all others is of the own scan."""
    others, own = scans * crops - 1, crops - 1
    return 1 - comb(others - own, rank) / comb(others, rank) if rank <= others else 1.0
