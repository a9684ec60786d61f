"""What stands around a U-Net: its channels are normalised, its size made to fit, and both undone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor


def as_channels(image: Complex[Tensor, "batch group height width"]) -> Float[Tensor, "batch channel height width"]:
    """Return all real parts, then all imaginary parts."""
    return torch.cat([image.real, image.imag], 1)


def as_groups(channels: Float[Tensor, "batch channel height width"]) -> Complex[Tensor, "batch group height width"]:
    """Return the complex image of real parts and as many imaginary parts: the inverse of `as_channels`."""
    return torch.complex(*channels.chunk(2, dim=1))


def normalised(
    channels: Float[Tensor, "batch channel height width"], *, multiple: int
) -> tuple[
    Float[Tensor, "batch channel padded_height padded_width"],
    Callable[[Float[Tensor, "batch out padded_height padded_width"]], Float[Tensor, "batch out height width"]],
]:
    """Return `channels` with mean 0 and deviation 1 a sample, padded by 0 to a `multiple`, and what undoes both.

    One mean and one (unbiased) deviation are taken over all channels together, so that their ratios stay. A constant
    sample has no deviation: its network sees 0, and whatever it says becomes the constant.
    """
    height, width = channels.shape[-2:]
    std, mean = torch.std_mean(channels, dim=(1, 2, 3), keepdim=True)
    missing = [-side % multiple for side in (width, height)]
    left, top = (side // 2 for side in missing)
    padding = (left, missing[0] - left, top, missing[1] - top)
    padded = F.pad((channels - mean) / torch.where(std > 0, std, 1), padding)

    def undo(output: Tensor) -> Tensor:
        inside = output[..., top : top + height, left : left + width]
        return inside.to(std.dtype) * std + mean

    return padded, undo
