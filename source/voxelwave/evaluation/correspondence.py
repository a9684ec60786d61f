"""Correspondence: where in another scan the tokens lie that are most like those of a scan, and where they should."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from numpy import ndarray

from voxelwave.evaluation.retrieval import BLOCK, unit_rows

TINY_MM = 1e-6

Points = Float[ndarray, "_ 3"]
Places = Real[ndarray, "_ 3"]  # points, or whole numbers of a grid


@dataclass(frozen=True)
class Tokens:
    """Where the tokens of a scan lie that count, such as those that are not air.

    Attributes:
        places: in the grid of tokens.
        to_mm: the matrix from such a place to the middle of the token in space.
        labels: the tissue of each token, 0 where it is not known.
        box_mm: two corners of the head in space, between which places of several heads are compared.
    """

    places: Int[ndarray, "token 3"]
    to_mm: Float[ndarray, "4 4"]
    labels: Int[ndarray, " token"]
    box_mm: Float[ndarray, "2 3"]

    @property
    def mm(self) -> Points:
        """The middle of every token in space."""
        return moved(self.to_mm, self.places)


def moved(matrix: Float[ndarray, "4 4"], points: Places) -> Points:
    """Return the points at which an affine matrix puts `points`."""
    return np.asarray(points @ matrix[:3, :3].T + matrix[:3, 3], dtype=np.float64)


def same_place(origin: Tokens, goal: Tokens) -> Points:
    """Return where the tokens of one scan lie in the grid of another of the same head, as their affines say."""
    return moved(np.linalg.inv(goal.to_mm), origin.mm)


def corresponding_place(origin: Tokens, goal: Tokens) -> Points:
    """Return where they should lie in the grid of another head: as far between the corners of its box as in their own.

    Heads that differ in size and place are brought onto each other by that, and no more is known of them all.
    """
    # A head of a single layer of tokens has no extent across it.
    share = (origin.mm - origin.box_mm[0]) / np.maximum(np.ptp(origin.box_mm, axis=0), TINY_MM)
    return moved(np.linalg.inv(goal.to_mm), goal.box_mm[0] + share * np.ptp(goal.box_mm, axis=0))


def there(goal: Tokens, places: Points) -> Bool[ndarray, " _"]:
    """Tell which of `places` lie in a token that counts."""
    if not len(goal.places):
        return np.zeros(len(places), dtype=bool)
    low, high = goal.places.min(0) - 1, goal.places.max(0) + 1
    nearest = np.clip(np.rint(places), low, high).astype(np.int64)
    known, asked = (np.ravel_multi_index((of - low).T, high - low + 1) for of in (goal.places, nearest))
    return np.isin(asked, known)


def most_alike(queries: Float[ndarray, "query dim"], gallery: Float[ndarray, "offered dim"]) -> Int[ndarray, " query"]:
    """Return the row of the gallery with the highest cosine for each query, the first of equals.

    Raises ValueError for embeddings that are not finite.
    """
    asked, offered = unit_rows(queries, "queries"), unit_rows(gallery, "gallery")
    blocks = [(asked[start : start + BLOCK] @ offered.T).argmax(1) for start in range(0, len(asked), BLOCK)]
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int64)


def within_one_token(found: Places, places: Points) -> Bool[ndarray, " _"]:
    """Tell which places of tokens are at most one token from where they should be, along each axis of the grid."""
    return np.asarray((np.abs(found - places) <= 1).all(-1))


def guessed_share(goal: Tokens, places: Points) -> Float[ndarray, " _"]:
    """Return for every place the share of the tokens of a scan that lie within one token of it: what guessing finds."""
    return np.array([within_one_token(goal.places, place[None]).mean() for place in places])


def distance_mm(goal: Tokens, found: Places, places: Points) -> Float[ndarray, " _"]:
    """Return how far in space what was found lies from where it should be; both are places in the grid of `goal`."""
    return np.asarray(np.linalg.norm((found - places) @ goal.to_mm[:3, :3].T, axis=1))


def blind_mm(goal: Tokens, places: Points) -> Float[ndarray, " _"]:
    """Return the distance of always answering with the middle of all tokens that count."""
    return distance_mm(goal, np.broadcast_to(goal.places.mean(0), places.shape), places)


def oracle_mm(goal: Tokens, places: Points, labels: Int[ndarray, " _"]) -> Float[ndarray, " _"]:
    """Return the distance of the nearest token of the same tissue; of any where that is not known or not there."""
    nearest = np.zeros(len(places))
    for label in np.unique(labels):
        asked, same = labels == label, goal.labels == label
        offered = goal.places[same if label > 0 and same.any() else slice(None)]
        nearest[asked] = [distance_mm(goal, offered, place[None]).min() for place in places[asked]]
    return nearest
