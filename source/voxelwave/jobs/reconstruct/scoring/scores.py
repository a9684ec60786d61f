"""Scores of reconstructed volumes, and their means by anatomy and rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from voxelwave.data.kspace.images.reading import Reconstructed, read_hdf5
from voxelwave.data.kspace.slices import DataRange
from voxelwave.errors import InputError
from voxelwave.evaluation.image_quality import DataRange as Range
from voxelwave.evaluation.image_quality import data_ranges, nmse, psnr_db, ssim_of_slices
from voxelwave.jobs.reconstruct.scoring.pairs import Pair
from voxelwave.losses.image_mask import Anatomy, challenge_mask
from voxelwave.losses.structural_similarity import WINDOW
from voxelwave.ops.loggers import logger
from voxelwave.physics.sampled_lines import Acceleration, acceleration_of

SCORES = ("ssim", "psnr_db", "nmse")
UNKNOWN, TIMES = "unknown", "×"


@dataclass(frozen=True)
class Score:
    """What one volume scores.

    Attributes:
        name: of its file.
        anatomy: "brain", "knee" or "".
        acceleration: nominal; nan where nothing says it.
        effective_acceleration: all lines over the sampled ones; nan where no mask is known.
        inside: the anatomy whose mask the similarity was taken in, "" for the whole image.
        ssims: of each slice.
    """

    name: str
    anatomy: str
    acceleration: float
    effective_acceleration: float
    method: str
    specialist: str
    inside: str
    ssims: tuple[float, ...]
    psnr_db: float
    nmse: float

    @property
    def ssim(self) -> float:
        """The mean of its slices."""
        return fmean(self.ssims)

    @property
    def rate(self) -> str:
        """The acceleration to the next whole number: a random mask is seldom exact."""
        return UNKNOWN if math.isnan(self.acceleration) else f"{round(self.acceleration)}{TIMES}"

    @property
    def group(self) -> tuple[str, str]:
        """What it is averaged with."""
        return self.anatomy or UNKNOWN, self.rate


@dataclass(frozen=True)
class Volumes:
    """A reconstruction and its target, and what is needed to score them.

    Attributes:
        data_range: of `evaluation.image_quality`.
        inside: where the anatomy is, None for the whole image.
        anatomy: "" where nothing says it.
        sampled: the columns that the reconstruction was made of, None where nothing says it.
        said: what its file says of the reconstruction.
    """

    images: Float32[Tensor, "slice rows columns"]
    target: Float32[Tensor, "slice rows columns"]
    data_range: Range
    inside: Bool[Tensor, "slice rows columns"] | None
    anatomy: str
    sampled: Bool[Tensor, " width"] | None
    said: Reconstructed


def load_volumes(pair: Pair, *, data_range: DataRange, anatomy: Anatomy | None) -> Volumes:
    """Read a pair; `anatomy` is that of files that do not say their own.

    Raises InputError, which names the file, for another number of slices or size than the target has, values that are
    not finite, and a target that is empty or has no data range.
    """
    file, path = pair.file, pair.reconstruction
    said = read_hdf5(path, of=file)
    target = torch.stack([image for index in range(len(file)) if (image := file.target(index)) is not None])
    limit = file.info.data_range if data_range == "attribute" else data_range
    if limit is None:
        raise InputError(f"{file.path}: has no attribute 'max' for the data range: take --data-range volume")
    if min(target.shape[1:]) < WINDOW:
        raise InputError(
            f"{file.path}: its target is {_size(target.shape)}, and a similarity needs {WINDOW} pixels a side"
        )
    if not bool(((largest := data_ranges(target, limit)) > 0).all()):
        raise InputError(
            f"{file.path}: slice {int(largest.argmin())} of its target has no value above 0, which no {data_range} "
            "can be the data range of"
        )
    known = next((name for name in get_args(Anatomy) if name == (said.anatomy or anatomy)), None)
    inside = challenge_mask(target, anatomy=known) if known else None
    if inside is not None and not bool(inside.any()):
        logger.warning(
            "note: %s: nothing of its target is bright enough for the mask of the challenge, it seems to be in another "
            "unit: its similarity is that of the whole image",
            file.path,
        )
        inside = None
    return Volumes(torch.from_numpy(said.images), target, limit, inside, known or "", _sampled(pair, said), said)


def score_of(name: str, of: Volumes) -> Score:
    """Return what a volume scores."""
    rate = Acceleration(math.nan, math.nan) if of.sampled is None else acceleration_of(of.sampled)
    return Score(
        name=name,
        anatomy=of.anatomy,
        acceleration=rate.nominal if math.isnan(of.said.acceleration) else of.said.acceleration,
        effective_acceleration=rate.effective,
        method=of.said.method,
        specialist=of.said.specialist,
        inside="" if of.inside is None else of.anatomy,
        ssims=tuple(ssim_of_slices(of.images, of.target, data_range=of.data_range, inside=of.inside).tolist()),
        psnr_db=psnr_db(of.images, of.target, data_range=of.data_range),
        nmse=nmse(of.images, of.target),
    )


def summary_of(scores: Sequence[Score]) -> dict[str, Any]:
    """Return means by anatomy and rate, by rate, and of the rates.

    Of anatomy and rate: mean and deviation over volumes (None for a single one). Of a rate, as the challenge does, the
    similarity is the mean over all slices; the other scores are those of volumes. The last is the mean of the rates.
    """
    groups, rates = [], []
    for anatomy, rate in sorted({score.group for score in scores}, key=_in_order):
        inner = [score for score in scores if score.group == (anatomy, rate)]
        group: dict[str, Any] = {"anatomy": anatomy, "rate": rate, **_counts(inner)}
        for name in SCORES:
            values = [getattr(score, name) for score in inner]
            # Of a volume that equals its target the PSNR is infinite.
            deviates = len(values) > 1 and all(map(math.isfinite, values))
            group[name], group[f"{name}_deviation"] = fmean(values), stdev(values) if deviates else None
        groups.append(group)
    for rate in dict.fromkeys(group["rate"] for group in sorted(groups, key=lambda group: _rate_order(group["rate"]))):
        inner = [score for score in scores if score.rate == rate]
        means = {name: fmean(getattr(score, name) for score in inner) for name in SCORES}
        rates.append({"rate": rate, **_counts(inner), **means, "ssim": fmean(_slices(inner))})
    return {"groups": groups, "rates": rates, "mean": {name: fmean(row[name] for row in rates) for name in SCORES}}


def _slices(scores: Sequence[Score]) -> list[float]:
    return [value for score in scores for value in score.ssims]


def _counts(scores: Sequence[Score]) -> dict[str, int]:
    return {"volumes": len(scores), "slices": len(_slices(scores))}


def _in_order(group: tuple[str, str]) -> tuple[str, float]:
    return group[0], _rate_order(group[1])


def _rate_order(rate: str) -> float:
    return math.inf if rate == UNKNOWN else float(rate.removesuffix(TIMES))


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _sampled(pair: Pair, said: Reconstructed) -> Bool[Tensor, " width"] | None:
    info = pair.file.info
    stored = info.sampled if said.sampled is None else tuple(said.sampled.tolist())
    if stored is None:
        return None
    if len(stored) != info.size[1]:
        raise InputError(
            f"{pair.reconstruction}: its mask has {len(stored)} columns, and the k-space of {pair.file.path} "
            f"{info.size[1]}: they have to agree"
        )
    sampled = torch.tensor(stored)
    first, last = info.measured_columns
    sampled[:first] = sampled[last:] = False
    if not bool(sampled.any()):
        raise InputError(f"{pair.reconstruction}: none of the columns of its mask was measured")
    return sampled
