"""MRAugment: moves of the images behind a fully sampled k-space, before anything of it is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Complex64, Float32, Int
from torch import Tensor

from voxelwave.physics.acquisition import root_sum_of_squares
from voxelwave.physics.fourier import center_crop, fft2c, ifft2c

KINDS = ("flip_horizontal", "flip_vertical", "rotate90", "translation", "rotation", "shear", "scale")

Images = Complex64[Tensor, "slice coil height width"]


@dataclass(frozen=True)
class Chance:
    """How likely a move is: `p_max` at the last epoch, and before that the sooner near it, the larger `decay` is."""

    p_max: float = 0.5
    decay: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.p_max <= 1 and 0 < self.decay < math.inf):
            raise ValueError(f"p_max lies between 0 and 1, and decay above 0, got {self.p_max} and {self.decay}")


@dataclass(frozen=True)
class Moves:
    """What is done to one item, in this order; angles in degrees, shifts in pixels down and to the right."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: int = 0
    shift: tuple[int, int] = (0, 0)
    degrees: float = 0.0
    shears_degrees: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    @property
    def interpolates(self) -> bool:
        """Whether values between pixels are needed."""
        return (self.degrees, self.shears_degrees, self.scale) != (0.0, (0.0, 0.0), 1.0)


class Augmented(NamedTuple):
    """K-space and target of images that were moved."""

    kspace: Images
    target: Float32[Tensor, "rows columns"] | None


class MRAugment:
    """Flips, turns, shifts, shears and scales all coils and slices of an item together, and makes its target anew.

    At epoch t, with D = `first_epoch` and T = `num_epochs`, a move has the probability
    p_max (1 - exp(-(t - D) c)) / (1 - exp(-(T - D) c)), c = decay / (T - D), and 0 before D.

    Args:
        chances: of each kind of move that takes place, one of `KINDS`.
        num_epochs: the epoch at which the chances are p_max.
        first_epoch: the epoch at which they are 0 for the last time.
        max_translation: of height and width, either way.
        max_rotation_degrees: either way.
        max_shear_degrees: along each axis, either way.
        max_scale: how much larger or smaller, as a share.

    Raises ValueError for settings out of range.
    Source: Fabian et al., Data augmentation for deep learning based accelerated MRI reconstruction, 2021, section 3.
    """

    def __init__(
        self,
        *,
        chances: Mapping[str, Chance],
        num_epochs: int,
        first_epoch: int = 0,
        max_translation: float = 0.05,
        max_rotation_degrees: float = 180.0,
        max_shear_degrees: float = 5.0,
        max_scale: float = 0.1,
    ) -> None:
        if unknown := sorted({*chances} - {*KINDS}):
            raise ValueError(f"unknown move '{unknown[0]}'; known: {', '.join(KINDS)}")
        if not 0 <= first_epoch < num_epochs:
            raise ValueError(f"first_epoch lies between 0 and num_epochs, got {first_epoch} and {num_epochs}")
        if not (0 <= max_translation < 1 and 0 <= max_scale < 1):
            raise ValueError(f"shares lie between 0 and 1, got {max_translation} for shifts and {max_scale} for scales")
        if not (0 <= max_rotation_degrees <= 180 and 0 <= max_shear_degrees < 90):
            raise ValueError(
                "angles lie between 0 and 180 degrees, of shears below 90, got "
                f"{max_rotation_degrees} and {max_shear_degrees}"
            )
        self.chances, self.num_epochs, self.first_epoch = dict(chances), num_epochs, first_epoch
        self.max_translation, self.max_scale = max_translation, max_scale
        self.max_rotation_degrees, self.max_shear_degrees = max_rotation_degrees, max_shear_degrees

    def __call__(
        self, kspace: Images, target: Float32[Tensor, "rows columns"] | None, generator: torch.Generator, *, epoch: int
    ) -> Augmented | None:
        """Return what becomes of a fully sampled `kspace` and of the `target` of its middle slice.

        None where no move was drawn: both are then to be kept as they are.
        """
        height, width = kspace.shape[-2:]
        moves = self.draw((height, width), generator, epoch=epoch)
        if moves == Moves():
            return None
        images = moved(ifft2c(kspace), moves)
        if target is not None:
            rows, columns = target.shape[::-1] if moves.quarter_turns % 2 else target.shape
            target = center_crop(root_sum_of_squares(images[len(images) // 2]), (rows, columns)).contiguous()
        return Augmented(fft2c(images), target)

    def probability(self, kind: str, epoch: int) -> float:
        """Return how likely a move is at an epoch."""
        if kind not in self.chances or epoch < self.first_epoch:
            return 0.0
        chance, whole = self.chances[kind], self.num_epochs - self.first_epoch
        rate = chance.decay / whole
        return chance.p_max * math.expm1(-(epoch - self.first_epoch) * rate) / math.expm1(-whole * rate)

    def draw(self, shape: tuple[int, int], generator: torch.Generator, *, epoch: int) -> Moves:
        """Return the moves of one item of `shape`, height and width.

        As many numbers are drawn whatever the chances: a move that is switched on leaves the others as they were.
        """
        coins = torch.rand(len(KINDS), generator=generator, dtype=torch.float64).tolist()
        down, right, turn, shear_x, shear_y, size, quarters = (
            2 * torch.rand(7, generator=generator, dtype=torch.float64) - 1
        ).tolist()
        taken = {kind: coin < self.probability(kind, epoch) for kind, coin in zip(KINDS, coins, strict=True)}
        shift = (int(down * self.max_translation * shape[0]), int(right * self.max_translation * shape[1]))
        shears = (shear_x * self.max_shear_degrees, shear_y * self.max_shear_degrees)
        return Moves(
            flip_horizontal=taken["flip_horizontal"],
            flip_vertical=taken["flip_vertical"],
            quarter_turns=1 + int(3 * (quarters + 1) / 2) if taken["rotate90"] else 0,
            shift=shift if taken["translation"] else (0, 0),
            degrees=turn * self.max_rotation_degrees if taken["rotation"] else 0.0,
            shears_degrees=shears if taken["shear"] else (0.0, 0.0),
            scale=1 + size * self.max_scale if taken["scale"] else 1.0,
        )


def moved(images: Images, moves: Moves) -> Complex64[Tensor, "slice coil rows columns"]:
    """Return `images` after `moves`; what comes in over an edge is their reflection."""
    # 1. What keeps pixels as they are.
    for wanted, axis in ((moves.flip_horizontal, -1), (moves.flip_vertical, -2)):
        images = images.flip(axis) if wanted else images
    images = torch.rot90(images, moves.quarter_turns, dims=(-2, -1))
    for axis, shift in ((-2, moves.shift[0]), (-1, moves.shift[1])):
        images = images.index_select(axis, _reflected(images.shape[axis], shift)) if shift else images
    # 2. What needs values between them, at once.
    return _affine(images, moves) if moves.interpolates else images


def _reflected(size: int, shift: int) -> Int[Tensor, " size"]:
    """Return which pixel comes to each place; the edge itself is not repeated."""
    period = max(2 * (size - 1), 1)
    places = (torch.arange(size) - shift).remainder(period)
    return torch.minimum(places, period - places) if size > 1 else places


def _affine(images: Images, moves: Moves) -> Images:
    """Turn (counter-clockwise as displayed), shear and scale about the middle, linear between pixels."""
    slices, coils, height, width = images.shape
    # 1. Where to look a pixel up: the inverse of turn · shear · scale, in pixels from the middle (right, down).
    angle = math.radians(moves.degrees)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    across, along = (math.tan(math.radians(shear)) for shear in moves.shears_degrees)
    shear = torch.tensor([[1, across], [along, 1 + across * along]], dtype=torch.float64)
    inverse = torch.linalg.inv(moves.scale * turn @ shear)
    half = torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=torch.float64) / 2
    # 2. grid_sample counts from -1, the centre of the first pixel, to 1, that of the last one.
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in (height, width))
    pixels = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
    grid = (pixels @ inverse.T / half)[None].float()
    # 3. Parts, coils and slices as channels: all move alike, and phases between coils stay.
    channels = torch.view_as_real(images).movedim(-1, 2).reshape(1, -1, height, width)
    looked_up = F.grid_sample(channels, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return torch.view_as_complex(looked_up.reshape(slices, coils, 2, height, width).movedim(2, -1).contiguous())
