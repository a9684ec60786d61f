"""The layer that removes frequencies: it holds a mask, and a network stands behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Complex, Float, Shaped
from torch import Tensor, nn

from voxelwave.physics.fixed_masks import complete_conjugates
from voxelwave.physics.fourier import as_complex, as_pairs, fft2c, ifft2c

Mask = Bool[Tensor, "height width"]


def image_of(kspace: Shaped[Tensor, "*shape"]) -> Complex[Tensor, "*grid"]:
    """Return the complex image of frequencies, pairs `[..., height, width, 2]` or complex `[..., height, width]`."""
    return ifft2c(as_complex(kspace))


def channels_of(kspace: Shaped[Tensor, "batch *grid"]) -> Float[Tensor, "batch 2 height width"]:
    """Return the image of frequencies as a network takes it: real and imaginary part as channels."""
    return as_pairs(image_of(kspace)).movedim(-1, 1)


def kspace_of(channels: Float[Tensor, "batch 2 height width"]) -> Complex[Tensor, "batch height width"]:
    """Return the frequencies of such an image: the inverse of `channels_of`."""
    return fft2c(as_complex(channels.movedim(1, -1)))


class Subsampling(nn.Module, ABC):
    """Returns k-space with a share of its frequencies removed; each rule of which ones is a subclass.

    K-space is complex `[..., height, width]` or pairs `[..., height, width, 2]`, and what comes back is of the same
    kind: a complex frequency is kept or dropped whole. All rules are used alike:

        optimizer.step()           # trains the network alone: the layer has no parameters
        layer.mask_step(mask_lr)   # moves the mask by the gradient of the same loss
        …
        layer.settle()             # from here on, the mask is the final one

    `default_mask_lr` is for a loss whose unit is the largest value of each image, squared.
    """

    default_mask_lr: ClassVar[float] = 0.0

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape

    @abstractmethod
    def mask(self) -> Mask:
        """Return which frequencies are kept at this moment."""

    def final_mask(self) -> Mask:
        """Return which frequencies would be kept after `settle`."""
        return self.mask()

    def mask_step(self, mask_lr: float) -> None:
        """Move the mask by the gradients since the last call; a fixed mask stays."""

    def settle(self) -> None:
        """Keep `final_mask` from here on, with no further steps."""

    def forward(self, kspace: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
        """Return `kspace` with 0 at what is dropped; raises ValueError where its size is not that of the mask."""
        values = as_complex(kspace)
        if values.shape[-2:] != self.shape:
            raise ValueError(f"the mask is for k-space of {self.shape}, got {tuple(values.shape[-2:])}: build it anew")
        removed = self._subsampled(values)
        return removed if kspace.is_complex() else as_pairs(removed)

    def _subsampled(self, values: Complex[Tensor, "*batch height width"]) -> Complex[Tensor, "*batch height width"]:
        return torch.where(self.mask(), values, 0)


class FixedMask(Subsampling):
    """Keeps the frequencies that are `sampled`, bool or 0 and 1 `[height, width]`.

    With `completes` what is not sampled is filled with conjugates, see `complete_conjugates`.
    Raises ValueError for a mask that is not binary, not of two axes, or keeps nothing.
    """

    sampled: Tensor

    def __init__(self, sampled: Shaped[Tensor, "..."], *, completes: bool = False) -> None:
        if sampled.ndim != 2:
            raise ValueError(f"a mask is [height, width], got the shape {tuple(sampled.shape)}")
        if sampled.is_complex() or not bool(((sampled == 0) | (sampled == 1)).all()):
            raise ValueError("a mask is binary: True and False, or 1 at what is kept and 0 elsewhere; got other values")
        if not bool(sampled.any()):
            raise ValueError(f"the mask of {tuple(sampled.shape)} keeps nothing: 1 marks what is kept")
        super().__init__((sampled.shape[0], sampled.shape[1]))
        self.completes = completes
        self.register_buffer("sampled", sampled.detach().bool().clone())

    def mask(self) -> Mask:
        """Return which frequencies are kept."""
        return self.sampled

    def _subsampled(self, values: Complex[Tensor, "*batch height width"]) -> Complex[Tensor, "*batch height width"]:
        if self.completes:
            return complete_conjugates(values, self.sampled)
        return super()._subsampled(values)
