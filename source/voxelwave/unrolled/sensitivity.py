"""Sensitivity maps from the centre of k-space: a small network, and a plain division."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Complex
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelwave.contracts import NumLines
from voxelwave.physics.acquisition import root_sum_of_squares, sample
from voxelwave.physics.fourier import ifft2c
from voxelwave.physics.sampled_lines import center_lines, sampled_places
from voxelwave.unrolled.normalising import as_channels, as_groups, normalised
from voxelwave.unrolled.prompt_unet import Level, PromptUnet, UnetShape
from voxelwave.unrolled.zero_filled import Volumes, coil_groups, zero_filled_coils

SMALL_UNET = UnetShape(
    first_channels=12, levels=(Level(16, 4, 64, 2, 2), Level(20, 8, 32, 3, 2), Level(24, 12, 16, 3, 3))
)


@dataclass(frozen=True)
class SensitivityShape:
    """The numbers of a `SensitivityNetwork`.

    Args:
        adjacent: the network sees all slices of a coil at once, as channels; else one at a time.
        per_coil: goes from coil to coil, and computes each again for its gradient: slower, in less memory.
    """

    unet: UnetShape = SMALL_UNET
    adjacent: bool = True
    per_coil: bool = True


def unit_maps(coil_images: Complex[Tensor, "... coil height width"]) -> Complex[Tensor, "... coil height width"]:
    """Return maps whose squared magnitudes sum to 1 over the coils of each pixel; 0 where all coils are 0."""
    magnitude = root_sum_of_squares(coil_images).unsqueeze(-3)
    return coil_images / torch.where(magnitude > 0, magnitude, 1)


def maps_by_groups(
    images_of: Callable[[slice], Complex[Tensor, "... coil height width"]], groups: Sequence[slice]
) -> Complex[Tensor, "... coil height width"]:
    """Return `unit_maps` of the images of all coils, which are computed a group at a time."""
    if len(groups) == 1:
        return unit_maps(images_of(groups[0]))
    first = images_of(groups[0])
    # Beside the maps nothing of their size is in memory.
    maps = first.new_empty((*first.shape[:-3], groups[-1].stop, *first.shape[-2:]))
    for number, group in enumerate(groups):
        maps[..., group, :, :] = images_of(group) if number else first
    magnitude = reduce(torch.hypot, (root_sum_of_squares(maps[..., group, :, :]) for group in groups)).unsqueeze(-3)
    return maps.div_(torch.where(magnitude > 0, magnitude, 1))


class SensitivityNetwork(nn.Module):
    """Cleans the images that the centre of k-space gives of each coil, and divides them by all coils together.

    Source: Sriram et al., End-to-end variational networks, 2020, section 3.3, with the U-Net of PromptMR+.
    """

    def __init__(self, *, num_slices: int, shape: SensitivityShape = SensitivityShape()) -> None:
        super().__init__()
        self.adjacent, self.per_coil = shape.adjacent, shape.per_coil
        self.coils_at_once: int | None = None  # bounds the memory without a gradient; None takes all
        channels = 2 * num_slices if shape.adjacent else 2
        self.unet = PromptUnet(channels, channels, shape=shape.unet)

    def forward(
        self, kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
    ) -> Volumes:
        """Return the maps of each slice; raises as `center_lines` does."""
        center = self._center(sampled, num_low_frequencies)
        # Each slice is divided by its own coils: maps that are of unit length over all slices would be too small.
        return maps_by_groups(
            lambda group: self._cleaned(zero_filled_coils(kspace[:, :, group], center)),
            coil_groups(kspace.shape[2], self.coils_at_once),
        )

    @staticmethod
    def _center(sampled: Tensor, num_low_frequencies: NumLines) -> Tensor:
        lines = center_lines(sampled, num_low_frequencies)
        return lines if sampled.ndim == 2 else lines[:, None] & sampled

    def _cleaned(self, images: Volumes) -> Volumes:
        by_coil = images.transpose(1, 2)
        if not self.per_coil:
            return self._clean(by_coil).transpose(1, 2)
        coils = by_coil.split(1, dim=1)
        cleaned = [checkpoint(self._clean, coil, use_reentrant=False, preserve_rng_state=False) for coil in coils]
        return torch.cat(cleaned, 1).transpose(1, 2)

    def _clean(
        self, by_coil: Complex[Tensor, "batch coil slice height width"]
    ) -> Complex[Tensor, "batch coil slice height width"]:
        groups = by_coil.shape[2] if self.adjacent else 1
        samples = by_coil.reshape(-1, groups, *by_coil.shape[-2:])
        channels, undo = normalised(as_channels(samples), multiple=self.unet.multiple)
        return as_groups(undo(self.unet(channels)[0])).view(by_coil.shape)


MapEstimate = Callable[
    [Complex[Tensor, "batch coil height width"], Bool[Tensor, "batch ... width"], NumLines],
    Complex[Tensor, "batch coil height width"],
]


def low_resolution_maps(
    kspace: Complex[Tensor, "batch coil height width"],
    sampled: Bool[Tensor, "batch ... width"],
    num_low_frequencies: NumLines = None,
    *,
    coils_at_once: int | None = None,
) -> Complex[Tensor, "batch coil height width"]:
    """Return maps of the smoothed centre of k-space, divided by all coils together.

    The same share of the height is taken as of the width. Raises as `center_lines` and `coil_groups` do.
    Source: McKenzie et al., Self-calibrating parallel imaging, 2002.
    """
    height, width = kspace.shape[-2:]
    count = center_lines(sampled, num_low_frequencies).sum(-1)
    # A window that falls to 0 towards its ends, since a hard edge would ring.
    windows = []
    for side in (height, width):
        place = (torch.arange(side, device=kspace.device) - side // 2).abs()
        relative = place / (count * side / width + 1)[:, None]
        windows.append(torch.where(relative < 0.5, torch.cos(math.pi * relative).square(), 0))
    rows, columns = windows
    window = rows[:, :, None] * columns[:, None, :]
    center = (window > 0) & sampled_places(sampled, height)
    return maps_by_groups(
        lambda group: ifft2c(sample(kspace[:, group], center) * window[:, None]),
        coil_groups(kspace.shape[1], coils_at_once),
    )
