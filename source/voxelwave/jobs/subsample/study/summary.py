"""What a study found: means with their deviations over images and over seeds, differences with intervals, words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from voxelwave.evaluation.estimates import estimate
from voxelwave.jobs.subsample.images import ImageSet
from voxelwave.jobs.subsample.scoring import Scores
from voxelwave.jobs.subsample.study.testing import ScoredCase, StudyTest

INTERVAL, RESAMPLES = (2.5, 97.5), 2000  # percentiles, and how often subjects are drawn
FEWEST = 5  # subjects that an interval can be told of
RINGS = 24  # from the origin to the corners
LOW = 0.25  # of the half-sides: what is called the centre of k-space


@dataclass(frozen=True)
class Row:
    """One mask at one drop rate; every figure is the mean over the seeds.

    Attributes:
        over_seeds: deviation of the mean PSNR on the test; None for one seed.
        untouched_psnr_db, untouched_ssim: of the first seed alone; None where they were not asked for.
        reason: of the first seed.
    """

    mask: str
    drop_rate: float
    training: dict[str, float]
    validation: dict[str, float]
    test: dict[str, float]
    filled: dict[str, float]
    over_seeds: float | None
    untouched_psnr_db: float | None
    untouched_ssim: float | None
    fits: list[str]
    reason: str
    gap_db: float
    gain_gap_db: float
    cases: list[ScoredCase]


@dataclass(frozen=True)
class Difference:
    """By how much one mask is above another on the test, in dB, and the interval over the subjects of its images."""

    drop_rate: float
    value: float
    low: float
    high: float
    worst_image: str
    worst_db: float


def rows_of(tested: StudyTest) -> list[Row]:
    """Return a row for each mask and drop rate, in the order of the cases."""
    groups: dict[tuple[str, float], list[ScoredCase]] = {}
    for one in tested.cases:
        groups.setdefault((one.case.mask, one.case.drop_rate), []).append(one)
    return [_row(mask, rate, of) for (mask, rate), of in groups.items()]


def _row(mask: str, drop_rate: float, of: list[ScoredCase]) -> Row:
    means = [fmean(one.network.psnr_db) for one in of]
    untouched = [one.untouched.scores for one in of if one.untouched is not None]
    return Row(
        mask,
        drop_rate,
        _mean([one.recorded["scores"]["training"]["network"] for one in of]),
        _mean([one.recorded["scores"]["validation"]["network"] for one in of]),
        _mean([one.network.summary() for one in of]),
        _mean([one.filled.summary() for one in of]),
        stdev(means) if len(means) > 1 else None,
        fmean(fmean(one.psnr_db) for one in untouched) if untouched else None,
        fmean(fmean(one.ssim) for one in untouched) if untouched else None,
        [one.verdict.fit for one in of],
        of[0].verdict.reason,
        fmean(one.verdict.gap_db for one in of),
        fmean(one.verdict.gain_gap_db for one in of),
        of,
    )


def _mean(summaries: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(of[name] for of in summaries) for name in summaries[0]}


def difference(row: Row, other: Row, test: ImageSet) -> Difference:
    """Return the paired difference of two masks' PSNR, image by image, over the means of their seeds.

    The interval is that of the bootstrap over subjects, since images of one are alike; nan for fewer than five.
    """
    values = _by_image([one.network for one in row.cases]) - _by_image([one.network for one in other.cases])
    found = estimate(lambda rows: float(values[rows].mean()), np.asarray(test.subjects), resamples=RESAMPLES)
    assert found.draws is not None
    known = len(set(test.subjects)) >= FEWEST
    low, high = np.percentile(found.draws(), INTERVAL) if known else (math.nan, math.nan)
    worst = int(values.argmin())
    return Difference(row.drop_rate, found.value, float(low), float(high), test.names[worst], float(values[worst]))


def _by_image(scores: Sequence[Scores]) -> Float[ndarray, " image"]:
    means: ndarray = np.mean([of.psnr_db for of in scores], axis=0)
    return means


def kept_power(sampled: Tensor, kspace: Tensor) -> float:
    """Return the share of the power of k-space that a mask keeps."""
    power = torch.view_as_real(kspace.resolve_conj()).double().square().sum(-1).sum(0)
    return float((power * sampled).sum() / power.sum())


def center_share(sampled: Tensor) -> float:
    """Return how much of the centre of k-space, a quarter of each side around the origin, a mask keeps."""
    height, width = sampled.shape
    rows, columns = (
        slice(side // 2 - int(LOW * side / 2), side // 2 + int(LOW * side / 2) + 1) for side in (height, width)
    )
    return float(sampled[rows, columns].double().mean())


def overlap(sampled: Tensor, other: Tensor) -> float:
    """Return the share of the places of `other` that a mask keeps, too."""
    return float((sampled & other).sum() / other.sum())


def explained(drop_rate: float, rows: Sequence[Row], kspace: Tensor) -> list[str]:
    """Say of one drop rate what each mask keeps, and why one is ahead of another: in sentences of measured figures."""
    at_rate = sorted((row for row in rows if row.drop_rate == drop_rate), key=lambda row: -row.test["psnr_db"])
    best, worst = at_rate[0], at_rate[-1]
    masks = {row.mask: row.cases[0].sampled for row in at_rate}
    sentences = []
    for row in at_rate:
        lost = 1 - kept_power(masks[row.mask], kspace)
        gained = row.test["psnr_db"] - row.filled["psnr_db"]
        if not math.isfinite(gained):
            sentences.append(f"The mask '{row.mask}' removes nothing.")
            continue
        sentences.append(
            f"The mask '{row.mask}' keeps {center_share(masks[row.mask]):.0%} of the centre of k-space and loses "
            f"{lost:.3%} of the power; its zero-filled images have {row.filled['psnr_db']:.2f} dB, and the network "
            f"adds {gained:+.2f} dB."
        )
    if len(at_rate) > 1:
        ahead = best.test["psnr_db"] - worst.test["psnr_db"]
        filled = best.filled["psnr_db"] - worst.filled["psnr_db"]
        if not math.isfinite(filled):
            why = "nothing is removed"
        elif filled > 0.5 * ahead:
            why = f"{min(filled / max(ahead, 1e-9), 1):.0%} of that is in the zero-filled images already"
        else:
            why = "most of that is made by the network: what it keeps is easier to complete"
        powers = [kept_power(masks[of.mask], kspace) for of in (best, worst)]
        if powers[0] > powers[1]:
            why += ", and it keeps more of the power"
        sentences.append(f"'{best.mask}' is {ahead:.2f} dB ahead of '{worst.mask}'; {why}.")
    return sentences


def radial_density(sampled: Tensor) -> tuple[list[float], list[float]]:
    """Return distances from the origin, in half-sides up to the corners, and the share that is kept in each ring."""
    height, width = sampled.shape
    y, x = ((torch.arange(side, dtype=torch.float64) - side // 2) / (side / 2) for side in (height, width))
    radius = torch.hypot(y[:, None], x[None])
    edges = torch.linspace(0, math.sqrt(2), RINGS + 1, dtype=torch.float64)
    ring = torch.bucketize(radius, edges[1:-1])
    counts = torch.bincount(ring.flatten(), minlength=RINGS)
    kept = torch.bincount(ring[sampled], minlength=RINGS)
    there = counts > 0
    middles = (edges[1:] + edges[:-1])[there] / 2
    return middles.tolist(), (kept[there] / counts[there]).tolist()
