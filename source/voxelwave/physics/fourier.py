"""Centred, orthonormal Fourier transforms between an image and its k-space."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor

AXES = (-2, -1)


def as_complex(values: Shaped[Tensor, "*shape"]) -> Complex[Tensor, "*grid"]:
    """Return real pairs `[..., 2]` as complex values, a view where possible; complex values stay as they are.

    What is not of single or double precision becomes single.
    Raises ValueError for a real tensor whose last axis is not 2.
    """
    if values.is_complex():
        return values
    if values.shape[-1:] != (2,):
        raise ValueError(
            f"real values come in pairs, [..., 2], got the shape {tuple(values.shape)}: "
            "give a complex tensor, or real and imaginary part side by side along a last axis"
        )
    return torch.view_as_complex(values.to(torch.promote_types(values.dtype, torch.float32)).contiguous())


def as_pairs(values: Complex[Tensor, "*grid"]) -> Float[Tensor, "*grid 2"]:
    """Return real and imaginary part side by side along a new last axis, a view where possible."""
    return torch.view_as_real(values.resolve_conj())


def fft2c(image: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the k-space of `image`, complex `[..., height, width]` or real pairs `[..., height, width, 2]`.

    The origin of both lies at `(height // 2, width // 2)`. Pairs give pairs. Raises as `as_complex` does.
    """
    shifted = torch.fft.ifftshift(as_complex(image), dim=AXES)
    kspace = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=AXES)
    return kspace if image.is_complex() else as_pairs(kspace)


def ifft2c(kspace: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the image of `kspace`: the inverse of `fft2c`, and its adjoint."""
    shifted = torch.fft.ifftshift(as_complex(kspace), dim=AXES)
    image = torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=AXES)
    return image if kspace.is_complex() else as_pairs(image)


def along_readout(values: Complex[Tensor, "... height width"], *, inverse: bool) -> Complex[Tensor, "... height width"]:
    """Return the transform along the height alone: from images to lines of k-space, or back where it is `inverse`."""
    transform = torch.fft.ifft if inverse else torch.fft.fft
    shifted = torch.fft.ifftshift(values, dim=-2)
    result: Tensor = torch.fft.fftshift(transform(shifted, dim=-2, norm="ortho"), dim=-2)
    return result


def crop_readout(
    kspace: Complex[Tensor, "... height width"], rows: int, *, first: int | None = None
) -> Complex[Tensor, "... rows width"]:
    """Return the k-space of so many `rows` of the image from `first` on, by default the middle.

    It is sampled at the same lines. Raises ValueError for rows beyond the image or below 1.
    """
    height, width = kspace.shape[-2:]
    places = along_readout(kspace, inverse=True)
    if first is None:
        return along_readout(center_crop(places, (rows, width)), inverse=False)
    if first < 0 or rows < 1 or first + rows > height:
        raise ValueError(f"an image of {height} rows has none from {first} to {first + rows - 1}")
    return along_readout(places[..., first : first + rows, :], inverse=False)


def center_crop(image: Shaped[Tensor, "... height width"], size: tuple[int, int]) -> Shaped[Tensor, "... rows columns"]:
    """Return the middle of `image`, a view; of an odd rest one more is cut behind than before, as fastMRI cuts it.

    Raises ValueError for a `size` beyond the image or below 1.
    """
    height, width = image.shape[-2:]
    (rows, columns) = size
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise ValueError(f"the middle of an image of {height}×{width} cannot be {rows}×{columns}")
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[..., top : top + rows, left : left + columns]
