"""Masks scored by a reconstruction that none of them was learned with: L1-wavelet, of the extra `classical`."""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from voxelwave.contracts import NumLines
from voxelwave.jobs.subsample.images import ImageSet
from voxelwave.jobs.subsample.scoring import Magnitudes, Reconstruct, Scores, score
from voxelwave.unrolled.classical import L1Wavelet

REGULARISATIONS = (1e-5, 1e-4, 1e-3, 1e-2)  # in units of the largest value of the zero-filled image
ITERATIONS = 40


class Untouched(NamedTuple):
    """What a mask scores, and the regularisation that validation chose for it."""

    scores: Scores
    regularisation: float


class MaskToScore(NamedTuple):
    """A mask by its name, with the images that choose, and those that are scored."""

    name: str
    sampled: Bool[Tensor, "height width"]
    validation: ImageSet
    test: ImageSet


def l1_wavelet(of: MaskToScore) -> tuple[str, Untouched]:
    """Return the name of a mask and what it scores; raises InputError where sigpy is not installed."""
    torch.set_num_threads(1)
    found = {weight: fmean(score(_with(weight, of.sampled), of.validation).psnr_db) for weight in REGULARISATIONS}
    best = max(found, key=found.__getitem__)
    return of.name, Untouched(score(_with(best, of.sampled), of.test), best)


def _with(regularisation: float, sampled: Bool[Tensor, "height width"]) -> Reconstruct:
    reconstruct = L1Wavelet(regularisation=regularisation, iterations=ITERATIONS, maps=_one_coil)

    def of_kspace(kspace: Tensor) -> Magnitudes:
        return reconstruct(kspace[:, None, None], sampled.expand(len(kspace), -1, -1))

    return of_kspace


def _one_coil(kspace: Tensor, sampled: Tensor, num_low_frequencies: NumLines = None) -> Tensor:
    """Return the map of a coil that sees everything alike; a `MapEstimate`."""
    return torch.ones_like(kspace)
