"""The anatomy of a slice through a head, painted from the outside to the inside in many images at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from voxelwave.physics.phantoms2d.drawing import Draws, Numbers, Planes, coordinates, ellipse, least, sheet, tube

NUM_LESIONS = 5
# Columns of the contrasts below, which are like T1, T2, FLAIR and proton density; a phantom mixes the four.
SCALP, BONE, MARROW, FLUID, GREY, WHITE, NUCLEUS = range(7)
CONTRASTS = (
    (0.90, 0.08, 0.60, 0.15, 0.50, 0.72, 0.58),
    (0.55, 0.06, 0.35, 1.00, 0.60, 0.42, 0.48),
    (0.65, 0.06, 0.40, 0.16, 0.68, 0.52, 0.60),
    (0.75, 0.10, 0.50, 0.70, 0.85, 0.66, 0.75),
)
# Centre and radii of thalamus, putamen and head of the caudate, on the right.
NUCLEI = ((0.13, -0.10, 0.105, 0.16), (0.31, 0.05, 0.075, 0.19), (0.15, 0.24, 0.06, 0.10))


class Slice:
    """The images while they are painted, and what all parts of the anatomy have to know."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws
        # 1. The pose, and how each head departs from the common shape.
        number, noise = draws.number, draws.noise
        x, y = coordinates(draws.size)
        angle = number(-0.12, 0.12)
        x, y = x - number(-0.025, 0.025), y - number(-0.025, 0.025)
        self.x: Planes = angle.cos() * x - angle.sin() * y + 0.025 * noise(3) + 0.012 * noise(7)
        self.y: Planes = angle.sin() * x + angle.cos() * y + 0.025 * noise(3) + 0.012 * noise(7)
        # Both sides are painted at once; shapes in `beside` are a little larger on one of them.
        self.side, self.mirrored = self.x.sign(), self.x.abs()
        self.beside: Planes = self.mirrored + self.side * number(-0.01, 0.01)
        # 2. From the nuclei, 0, up to above the ventricles, 1; from full to shrunken, 0 to 1.
        self.height, self.atrophy = number(0, 1), number(0, 1)
        # 3. What the tissues look like.
        shares = (6 * torch.cat([number(0, 1) for _ in CONTRASTS], 2)).softmax(2)
        jitter = torch.cat([number(0.85, 1.15) for _ in CONTRASTS[0]], 2)
        self.tissues = (shares @ torch.tensor(CONTRASTS) * jitter).unbind(2)
        self.image = torch.zeros_like(self.x)

    def cover(self, depth: Tensor) -> Tensor:
        """Return the share of each pixel that lies inside, for an edge one pixel wide."""
        return (depth * (self.draws.size / 2) + 0.5).clamp(0, 1)

    def tissue(self, number: int) -> Numbers:
        """Return what a tissue looks like in each phantom."""
        return self.tissues[number][:, :, None]

    def paint(self, value: Tensor, cover: Tensor) -> None:
        """Cover the image with `value`."""
        self.image = torch.lerp(self.image, value.expand_as(self.image), cover)


def paint_slices(draws: Draws) -> Planes:
    """Return images that are not equalised yet."""
    one = Slice(draws)
    hull = _paint_head(one)
    white = _paint_cortex(one, hull)
    _paint_nuclei(one, hull)
    _paint_ventricles(one)
    _paint_lesions(one, hull, white)
    # The receiver's or the tissue's slow changes.
    return one.image * (1 + 0.08 * draws.noise(3).clamp(-3, 3))


def _paint_head(one: Slice) -> Planes:
    """Paint scalp, skull and the fluid around the brain; return the depth below the surface of the brain."""
    number, noise = one.draws.number, one.draws.noise
    # An ellipse of nearly the same area in every phantom, wider behind.
    half = number(0.72, 0.80)
    length = number(0.63, 0.65) / half
    egg = half * (1 + number(-0.22, 0.08) * one.y / length)
    head = (1 - torch.hypot(one.x / egg, one.y / length)) * (half + length) / 2
    scalp = number(0.04, 0.075) * (1 + 0.35 * noise(5)).clamp_min(0.4)
    bone = number(0.045, 0.08) * (1 + 0.2 * noise(5)).clamp_min(0.5)
    cavity = head - scalp - bone
    one.paint(one.tissue(SCALP), one.cover(head))
    one.paint(one.tissue(BONE), one.cover(head - scalp))
    one.paint(one.tissue(MARROW), one.cover(number(0.005, 0.02) - (cavity + bone / 2).abs()))
    one.paint(one.tissue(FLUID), one.cover(cavity))
    return cavity - 0.012 - 0.035 * one.atrophy


def _paint_cortex(one: Slice, hull: Planes) -> Planes:
    """Paint the folded ribbon and the white matter, of which the depth is returned.

    A sulcus is where a wave around each hemisphere, bent by noise, crosses 0, down to a depth that varies too.
    """
    number, noise = one.draws.number, one.draws.noise
    count = number(10, 16)
    # One by one: the last pixels of a batch are computed otherwise than the others.
    angles = torch.stack([torch.atan2(y, x) for y, x in zip(one.y, one.mirrored - 0.1, strict=True)])
    wave = count * angles + number(0, 7) + number(-0.7, 0.7) * one.side
    wave = wave + 2.2 * noise(5) + 1.1 * noise(11)
    away = (wave / 2).sin().abs() * (2 * torch.hypot(one.x, one.y) + 0.3) / count
    sulci = sheet(away, hull - number(0.1, 0.22) - 0.07 * noise(8))
    # Fissures between the hemispheres, shorter where the callosum is cut, and above the temporal lobe.
    bend = 0.02 * noise(6)
    between = sheet(one.x + bend, number(0.25, 0.4) * (1 - 0.8 * one.height) - (one.y - 0.02).abs())
    tilt, end = number(0.1, 0.6) * (one.mirrored - 0.4), number(0.27, 0.36) + 0.3 * one.height
    lateral = sheet(one.y + bend + number(-0.12, 0.08) - tilt, end - one.mirrored)
    width = 0.008 + 0.012 * one.atrophy
    grey = least(hull, sulci - width, between - 0.7 * width, lateral - 1.3 * width)
    white = grey - number(0.05, 0.075)
    one.paint(one.tissue(GREY), one.cover(grey))
    one.paint(one.tissue(WHITE), one.cover(white))
    return white


def _paint_nuclei(one: Slice, hull: Planes) -> None:
    """Paint the nuclei of the low slices."""
    number, ragged = one.draws.number, 0.006 * one.draws.noise(14)
    share = (1.25 - 1.3 * one.height).clamp(0.05, 1)
    for across, along, wide, long in NUCLEI:
        x, y = one.beside - across * number(0.9, 1.1), one.y - along + number(-0.03, 0.03)
        x = x + number(-0.08, 0.16) * y
        depth = ellipse(x, y, wide * share * number(0.85, 1.2), long * share * number(0.85, 1.2))
        one.paint(one.tissue(NUCLEUS) * number(0.93, 1.07), one.cover(least(depth + ragged, hull, 0.1 * share - 0.02)))


def _paint_ventricles(one: Slice) -> None:
    """Paint the lateral ventricles, horns in low slices and one body in higher ones, and the third below them."""
    number, height, x, y = one.draws.number, one.height, one.beside, one.y
    size = number(0.3, 1) * (0.5 + 0.9 * one.atrophy)
    radius = 0.012 + 0.028 * size
    middle, before = number(0.045, 0.075) + 0.02 * height, number(0.07, 0.2)
    behind = 0.5 * before - 0.24
    front = (number(0.12, 0.18) * (1 - 0.5 * height), number(0.3, 0.4) * (1 - 0.15 * height))
    back = (number(0.2, 0.32) * (1 - 0.45 * height), number(-0.45, -0.3))
    lateral = torch.maximum(
        tube(x, y, (middle, before), front, 0.9 * radius, radius * number(0.5, 0.9)),
        tube(x, y, (middle + 0.05, behind), back, 0.8 * radius, radius * number(0.7, 1.5)),
    )
    body = tube(x, y, (middle, before), (middle + 0.05, behind), 0.9 * radius, 0.8 * radius)
    lateral = torch.maximum(lateral, body - 0.07 * (1.2 - 2.2 * height).clamp(0, 1))
    lateral = lateral - 0.6 * (height - 0.85).clamp_min(0) + 0.004 * one.draws.noise(14)
    slit = number(0.008, 0.014) + 0.02 * one.atrophy * size - one.mirrored
    third = least(slit, 0.14 - (y + 0.06).abs() - 0.3 * (height - 0.35).clamp_min(0))
    # The septum between the two stays.
    inside = torch.maximum(least(lateral, one.mirrored - 0.008), third)
    one.paint(one.tissue(FLUID) * number(0.85, 1), one.cover(inside))


def _paint_lesions(one: Slice, hull: Planes, white: Planes) -> None:
    """Paint up to `NUM_LESIONS` ragged lesions, some with a core, and small spots in the white matter."""
    number, noise = one.draws.number, one.draws.noise
    ragged, inside = 0.25 * noise(16), one.cover(hull - 0.01)
    for index in range(NUM_LESIONS):
        angle, away = number(0, 2 * math.pi), number(0, 1).sqrt()
        radius = 0.025 + 0.12 * number(0, 1) ** 2.5
        depth = ellipse(
            *(one.x - 0.5 * away * angle.cos(), one.y - 0.62 * away * angle.sin()),
            *(radius * number(0.7, 1.3), radius * number(0.7, 1.3)),
        )
        depth = depth + ragged * radius
        # One phantom in twenty has no first lesion; of each of the others nearly half do.
        there = inside * (number(0, 1) < (0.55 if index else 0.95))
        bright = number(0, 1)
        value = torch.where(bright < 0.3, 0.05 + 0.6 * bright, 0.7 + 0.35 * bright)
        one.paint(value, one.cover(depth) * there)
        core = there * (number(0, 1) < 0.35)
        one.paint(number(0.1, 1), one.cover(depth - radius * number(0.3, 0.6)) * core)
    spots = one.cover(0.03 * (noise(22) - number(2, 3.5)))
    one.paint(number(0.5, 1.1), spots * one.cover(white))
