"""What phantoms are drawn with: random numbers and smooth noise for many at once, and shapes.

Places are in head coordinates, where 1 is half of the field of view: x to the right, y to the front, which is the top
of the image. A depth is a signed distance from a border, positive inside.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Planes = Float[Tensor, "phantom height width"]
Numbers = Float[Tensor, "phantom 1 1"]

# Numbers, and knots of noise, that are drawn for each phantom; anatomy takes nearly all of them.
NUM_NUMBERS, NUM_KNOTS = 128, 2560


class Draws:
    """The random numbers of a batch of phantoms, handed out in the order in which they are asked for."""

    def __init__(self, generators: Sequence[torch.Generator], size: int) -> None:
        self.size = size
        self._numbers = iter(torch.stack([torch.rand(NUM_NUMBERS, 1, 1, generator=g) for g in generators], 1))
        self._knots = torch.stack([torch.randn(NUM_KNOTS, generator=g) for g in generators])

    def number(self, low: float, high: float) -> Numbers:
        """Return a number between `low` and `high` for each phantom."""
        drawn: Numbers = next(self._numbers)
        return low + (high - low) * drawn

    def noise(self, cells: int) -> Planes:
        """Return noise of about unit variance for each phantom, smooth over a `cells`-th of the field of view."""
        count = cells + 1
        knots, self._knots = self._knots.tensor_split([count * count], 1)
        # Interpolation is linear in the knots: two small products are faster than a search for each pixel.
        one, shape = torch.eye(count)[None, None], (self.size, count)
        weights = F.interpolate(one, shape, mode="bicubic", align_corners=True)[0, 0]
        # One by one: a product of a batch rounds otherwise, and a phantom would depend on those drawn with it.
        return torch.stack([weights @ one @ weights.T for one in knots.unflatten(1, (count, count))])


def coordinates(size: int) -> tuple[Float[Tensor, " width"], Float[Tensor, "height 1"]]:
    """Return x and y of the pixels' centres."""
    x = (2 * torch.arange(size) + 1) / size - 1
    return x, -x[:, None]


def least(first: Tensor, *others: Tensor) -> Tensor:
    """Return the depth inside the intersection of shapes."""
    for other in others:
        first = torch.minimum(first, other)
    return first


def sheet(distance: Planes, beyond: Planes) -> Planes:
    """Return the distance to a line that ends where `beyond` is positive; `distance` is without that end."""
    return torch.hypot(distance, beyond.clamp_min(0))


def ellipse(x: Planes, y: Planes, wide: Numbers, long: Numbers) -> Planes:
    """Return the approximate depth below the border of an ellipse around the origin."""
    return (1 - torch.hypot(x / wide, y / long)) * torch.minimum(wide, long)


def tube(
    x: Planes, y: Planes, start: tuple[Numbers, Numbers], end: tuple[Numbers, Numbers], first: Numbers, last: Numbers
) -> Planes:
    """Return the depth inside a tube from `start` to `end`, whose radius changes from `first` to `last`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return first + along * (last - first) - torch.hypot(x - start[0] - along * dx, y - start[1] - along * dy)
