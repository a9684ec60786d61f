"""Masks with an exact share of the frequencies, chosen without training, for k-space centred as in `fourier`.

Single frequencies are kept or dropped, or whole `lines`, which run along the height. Every mask but the Poisson disc
keeps the places with the highest scores; they differ in the scores.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float, Shaped
from torch import Tensor

from voxelwave.physics.fourier import as_complex, as_pairs
from voxelwave.physics.samplings.poisson_disc import PoissonDisc

DECAY = 4.0  # of the density, the higher the more in the middle
CENTER_FRACTION = 0.08  # of the sides, beside places that lie apart

Shape = tuple[int, int]
Mask = Bool[Tensor, "height width"]
Scores = Float[Tensor, "height width"]
FixedMaskName = Literal["random", "random_with_zero", "variable_density", "poisson_disc", "disc", "power", "half_plane"]


def num_kept(num_places: int, drop_rate: float) -> int:
    """Return round((1 − drop_rate) × num_places), a half to the even number, as Python rounds.

    Raises ValueError for a drop rate outside of [0, 1), and where nothing would be kept.
    """
    if not 0 <= drop_rate < 1:
        raise ValueError(f"drop_rate, the share of frequencies to remove, must be at least 0 and below 1: {drop_rate}")
    count = round((1 - drop_rate) * num_places)
    if count < 1:
        raise ValueError(f"drop_rate {drop_rate} keeps none of {num_places} frequencies or lines: lower it")
    return count


def keep_highest(scores: Shaped[Tensor, "*places"], count: int) -> Bool[Tensor, "*places"]:
    """Return True at the `count` highest scores; of equal ones the first in the order of memory."""
    order = scores.detach().flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[order[:count]] = True
    return kept.view(scores.shape)


def mask_of_scores(scores: Scores, *, drop_rate: float, lines: bool = False) -> Mask:
    """Keep the highest of the scores; a line's score is the mean along it. Raises as `num_kept` does."""
    if lines:
        of_lines = scores.mean(0)
        return keep_highest(of_lines, num_kept(len(of_lines), drop_rate)).repeat(len(scores), 1)
    return keep_highest(scores, num_kept(scores.numel(), drop_rate))


def random_mask(
    shape: Shape, generator: torch.Generator, *, drop_rate: float, lines: bool = False, keep_zero: bool = False
) -> Mask:
    """Each place is as likely as any other; with `keep_zero` the zero frequency is one of those that are kept."""
    height, width = shape
    # A score that a line has along all of it is its mean, and infinity stays above all others.
    scores = torch.rand((1, width) if lines else shape, generator=generator, dtype=torch.float64).repeat(
        height if lines else 1, 1
    )
    if keep_zero:
        scores[height // 2, width // 2] = math.inf
    return mask_of_scores(scores, drop_rate=drop_rate, lines=lines)


def variable_density(shape: Shape, generator: torch.Generator, *, drop_rate: float, lines: bool = False) -> Mask:
    """Prefer a place by (1 − its distance from the zero frequency) ** `DECAY`, with 1 beyond the corners or last lines.

    The zero frequency is kept.
    Source: Lustig et al., Sparse MRI, 2007, for the density; Efraimidis and Spirakis, 2006, for drawing by weights.
    """
    height, width = shape
    radius = _line_distance(shape) if lines else _distance(shape) / math.sqrt(2)
    rate = torch.rand((1, width) if lines else shape, generator=generator, dtype=torch.float64)
    # The first to arrive, of exponential waiting times with the weights as rates, have the highest of these scores.
    scores = DECAY * (1 - radius).log() - rate.clamp_min(torch.finfo(rate.dtype).tiny).log().neg().log()
    scores[height // 2, width // 2] = math.inf
    return mask_of_scores(scores, drop_rate=drop_rate, lines=lines)


def poisson_disc(shape: Shape, generator: torch.Generator, *, drop_rate: float) -> Mask:
    """Keep places apart from each other, and a centre block of at most a quarter of what is kept; see `PoissonDisc`.

    Raises ValueError as it does, and as `num_kept` does.
    """
    places = math.prod(shape)
    count = num_kept(places, drop_rate)
    block = min(CENTER_FRACTION, 0.5 * math.sqrt(count / places))
    return PoissonDisc(acceleration=places / count, center_fraction=block)(shape, generator)


def disc(shape: Shape, *, drop_rate: float, lines: bool = False) -> Mask:
    """Keep the places nearest to the zero frequency, distances in sides: an ellipse, or a band of lines."""
    radius = _line_distance(shape) if lines else _distance(shape)
    return mask_of_scores(-radius, drop_rate=drop_rate, lines=lines)


def highest_mean_power(kspace: Shaped[Tensor, "image *grid"], *, drop_rate: float, lines: bool = False) -> Mask:
    """Keep the places with the highest |k-space|², averaged over all of `kspace`: the images of training alone.

    k-space is complex `[image, height, width]` or pairs `[image, height, width, 2]`. Of all masks of this share, this
    one has the least squared error of the zero-filled complex images, over the images that it is made of. Raises as
    `num_kept` does, and ValueError for k-space of another shape.
    """
    values = as_complex(kspace)
    if values.ndim != 3 or len(values) == 0:
        raise ValueError(
            f"the power is that of k-space [image, height, width], one image at least: {tuple(values.shape)}"
        )
    power = torch.view_as_real(values.resolve_conj()).double().square().sum(-1).mean(0)
    return mask_of_scores(power, drop_rate=drop_rate, lines=lines)


def half_plane(shape: Shape, *, drop_rate: float, lines: bool = False) -> Mask:
    """Keep one of each pair of conjugate places, near ones first; what is left to keep goes to their partners.

    `complete_conjugates` is the reconstruction that makes use of it.
    """
    height, width = shape
    row, column = torch.arange(height)[:, None], torch.arange(width)[None]
    opposite_row, opposite_column = (2 * (height // 2) - row) % height, (2 * (width // 2) - column) % width
    first = column > opposite_column
    first = (
        (first | (column == opposite_column))
        if lines
        else first | ((column == opposite_column) & (row >= opposite_row))
    )
    radius = _line_distance(shape) if lines else _distance(shape)
    return mask_of_scores(4.0 * first - radius, drop_rate=drop_rate, lines=lines)


def complete_conjugates(kspace: Shaped[Tensor, "*shape"], sampled: Mask) -> Shaped[Tensor, "*shape"]:
    """Fill places that are not sampled with the conjugate of the opposite frequency, 0 where that lacks, too.

    This is exact for real images with the zero frequency at (height // 2, width // 2), and wrong for others. `kspace`
    is complex `[..., height, width]` or pairs `[..., height, width, 2]`, and so is the result.
    """
    values = as_complex(kspace)
    filled = torch.where(sampled, values, torch.where(opposite(sampled), opposite(values).conj(), 0))
    return filled if kspace.is_complex() else as_pairs(filled)


def opposite(values: Shaped[Tensor, "*grid"]) -> Shaped[Tensor, "*grid"]:
    """Return at each place of the last two axes, height and width, the value of the opposite frequency."""
    even = [1 - side % 2 for side in values.shape[-2:]]
    # The first frequency of an even side has no opposite within the side: it is its own.
    return values.flip((-2, -1)).roll(even, (-2, -1))


def fixed_mask(
    name: FixedMaskName,
    shape: Shape,
    generator: torch.Generator,
    *,
    drop_rate: float,
    lines: bool = False,
    training: Complex[Tensor, "image height width"] | None = None,
) -> Mask:
    """Return the mask called `name`; `training`, k-space of the training images, is for the power alone.

    Raises ValueError for an unknown name, for Poisson discs of lines, and where the power lacks its k-space or has one
    of another shape; also as `num_kept` does.
    """
    if name == "random" or name == "random_with_zero":
        return random_mask(shape, generator, drop_rate=drop_rate, lines=lines, keep_zero=name == "random_with_zero")
    if name == "variable_density":
        return variable_density(shape, generator, drop_rate=drop_rate, lines=lines)
    if name == "poisson_disc":
        if lines:
            raise ValueError("a Poisson disc consists of single frequencies, not of lines: choose another mask")
        return poisson_disc(shape, generator, drop_rate=drop_rate)
    if name == "disc":
        return disc(shape, drop_rate=drop_rate, lines=lines)
    if name == "half_plane":
        return half_plane(shape, drop_rate=drop_rate, lines=lines)
    if name == "power":
        if training is None or tuple(training.shape[1:]) != shape:
            got = "none" if training is None else tuple(training.shape)
            raise ValueError(f"the mask of highest mean power needs training k-space [image, *{shape}], got {got}")
        return highest_mean_power(training, drop_rate=drop_rate, lines=lines)
    raise ValueError(f"unknown fixed mask '{name}'; known: {', '.join(FixedMaskName.__args__)}")


def _line_distance(shape: Shape) -> Float[Tensor, "height width"]:
    """Return the distance of each place's line from that of the zero frequency: 0 to below 1."""
    height, width = shape
    distance = (torch.arange(width, dtype=torch.float64) - width // 2).abs() / (width // 2 + 1)
    return distance.repeat(height, 1)


def _distance(shape: Shape) -> Float[Tensor, "height width"]:
    """Return the distance from the zero frequency, with each half-side as unit: 0 to below √2."""
    y, x = ((torch.arange(side, dtype=torch.float64) - side // 2) / (side // 2 + 1) for side in shape)
    return torch.hypot(y[:, None], x[None])
