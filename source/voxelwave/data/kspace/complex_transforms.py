"""Transforms of complex multi-coil images as real pairs: of one item `[coil, height, width, 2]`, or of a batch.

Each is called as `transform(pairs, generator)` on an item, and with a generator a sample on a batch; what draws
nothing needs none. A sample of a batch becomes what it becomes by itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from voxelwave.physics.coil_compression import compress, compression_matrix
from voxelwave.physics.fourier import as_complex, as_pairs
from voxelwave.physics.samplings import Sampling
from voxelwave.physics.samplings.equispaced import EquispacedLines

Pairs = Float[Tensor, "batch coil height width 2"]
Generators = torch.Generator | Sequence[torch.Generator] | None


class ComplexTransform(nn.Module, ABC):
    """What the transforms share: an item is a batch of one."""

    random: ClassVar[bool] = False

    def forward(self, pairs: Float[Tensor, "*shape"], generators: Generators = None) -> Tensor:
        """Return `pairs`, an item or a batch, transformed; raises ValueError for other shapes or too few generators."""
        if pairs.ndim not in (4, 5) or pairs.shape[-1] != 2 or pairs.numel() == 0:
            raise ValueError(
                "an item is [coil, height, width, 2], real and imaginary part last, a batch has one axis before, and "
                f"no axis is empty; got the shape {tuple(pairs.shape)}"
            )
        batch = pairs if pairs.ndim == 5 else pairs[None]
        given = [generators] if isinstance(generators, torch.Generator) else list(generators or [])
        if self.random and len(given) != len(batch):
            raise ValueError(
                f"{type(self).__name__} draws numbers: give a generator a sample, got {len(given)} for {len(batch)}"
            )
        transformed = self.transformed(batch, given)
        return transformed if pairs.ndim == 5 else transformed[0]

    @abstractmethod
    def transformed(self, pairs: Pairs, generators: Sequence[torch.Generator]) -> Tensor:
        """Return a batch transformed; where the transform is `random`, there is a generator for each sample."""


class ComplexPipeline(nn.Module):
    """Transforms one after the other, each called with the same generators."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.steps = nn.ModuleList(modules)

    def forward(self, pairs: Float[Tensor, "*shape"], generators: Generators = None) -> Tensor:
        """Return `pairs`, an item or a batch, after every transform."""
        for step in self.steps:
            pairs = step(pairs, generators)
        return pairs


class Undersample(ComplexTransform):
    """Keeps the sampled places of the centred k-space, alike for all coils, and goes back to the image.

    A sampling is called with (height, width) and the sample's generator. Raises ValueError where a sample holds NaN or
    infinite values, since every pixel of its image would become NaN.
    """

    random = True

    def __init__(self, sampling: Sampling) -> None:
        super().__init__()
        self.sampling = sampling

    def transformed(self, pairs: Pairs, generators: Sequence[torch.Generator]) -> Pairs:
        """Return the zero-filled images of a batch."""
        height, width = pairs.shape[2:4]
        # Where nothing is drawn, any generator will do, and one choice is for all.
        given = generators if self.random else [torch.Generator()]
        sampled = torch.stack([self.sampling((height, width), generator) for generator in given]).to(pairs.device)
        # To choose in k-space is to convolve periodically, which does not ask where the image has its origin: with
        # the choice in the order of the plain transform, nothing as large as the image is shifted.
        kept = torch.fft.ifftshift(sampled, dim=(1, 2))[:, None]
        # Of lines that are whole along the height, only the axis across them has to be transformed.
        axes = (-1,) if bool((sampled == sampled[:, :1]).all()) else (-2, -1)
        kept = kept[:, :, :1] if axes == (-1,) else kept
        kspace = torch.fft.fftn(as_complex(pairs), dim=axes)
        _check_finite(kspace[..., 0].abs(), "a Fourier transform would spread them over the image")
        return as_pairs(torch.fft.ifftn(kspace.mul_(kept), dim=axes))


class EquispacedUndersample(Undersample):
    """Keeps every `acceleration`-th line along the width, and the central `center_fraction` of all lines.

    Draws nothing: the lines are the same for every sample. Raises ValueError as `EquispacedLines` does.
    """

    random = False

    def __init__(self, *, acceleration: float = 4.0, center_fraction: float = 0.08) -> None:
        super().__init__(EquispacedLines(acceleration=acceleration, center_fraction=center_fraction))


def rotate_and_shift(pairs: Pairs, degrees: Float[Tensor, " batch"], shifts: Float[Tensor, "batch 2"]) -> Pairs:
    """Turn each sample about its middle, counter-clockwise as displayed, then shift it by (rows, columns) in pixels.

    Linear between pixels, 0 outside; differentiable in the sample, the angle and the shift.
    """
    _, coils, height, width, _ = pairs.shape
    cosine, sine = torch.deg2rad(degrees).cos(), torch.deg2rad(degrees).sin()
    down, right = shifts.unbind(1)
    # Where to look a pixel up: grid_sample counts from -1 to 1 along each axis, the width first.
    theta = torch.stack(
        [
            *(cosine, -sine * height / width, (sine * down - cosine * right) * 2 / width),
            *(sine * width / height, cosine, -(cosine * down + sine * right) * 2 / height),
        ],
        1,
    ).unflatten(1, (2, 3))
    # Parts and coils as channels: they move together, and each is a plane in memory, also for what comes next.
    planes = pairs.movedim(-1, 2).flatten(1, 2)
    places = F.affine_grid(theta.to(planes), list(planes.shape), align_corners=False)
    moved: Tensor = F.grid_sample(planes, places, align_corners=False)
    parts: Tensor = moved.unflatten(1, (coils, 2))
    return parts.movedim(2, -1)


class Augmentation(ComplexTransform):
    """Turns each sample by up to `max_degrees` either way and shifts it by up to `max_shift` pixels along each axis.

    Raises ValueError for an angle beyond 180 degrees, or a negative or infinite setting.
    """

    random = True

    def __init__(self, *, max_degrees: float = 10.0, max_shift: float = 2.0) -> None:
        super().__init__()
        if not (0 <= max_degrees <= 180 and 0 <= max_shift < math.inf):
            raise ValueError(
                "max_degrees lies between 0 and 180, and max_shift is at least 0 and finite, "
                f"got {max_degrees} and {max_shift}"
            )
        self.max_degrees, self.max_shift = max_degrees, max_shift

    def draw(self, generators: Sequence[torch.Generator]) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch 2"]]:
        """Return angles in degrees and shifts in pixels, as `rotate_and_shift` takes them."""
        between = 2 * torch.stack([torch.rand(3, generator=generator) for generator in generators]) - 1
        return between[:, 0] * self.max_degrees, between[:, 1:] * self.max_shift

    def transformed(self, pairs: Pairs, generators: Sequence[torch.Generator]) -> Pairs:
        """Return a batch, each sample moved in its own way."""
        return rotate_and_shift(pairs, *self.draw(generators))


class CoilCompression(ComplexTransform):
    """Returns `num_virtual` combinations of a sample's coils, those that hold the most of its energy, in this order.

    They are its leading left singular vectors, coils by pixels, each turned so that its largest coefficient is real and
    positive: a sample has one result, whatever the phase of the vectors that were found.
    Raises ValueError for fewer coils than `num_virtual`, or a number below 1.
    Source: Buehrer et al., Array compression for MRI with large coil arrays, 2007.
    """

    def __init__(self, *, num_virtual: int) -> None:
        super().__init__()
        if num_virtual < 1:
            raise ValueError(f"num_virtual must be at least 1, got {num_virtual}")
        self.num_virtual = num_virtual

    def transformed(self, pairs: Pairs, generators: Sequence[torch.Generator]) -> Float[Tensor, "batch virtual ..."]:
        """Return the virtual coils of a batch, each sample by itself."""
        return torch.stack([as_pairs(self._compressed(image)) for image in as_complex(pairs)])

    def _compressed(self, image: Complex[Tensor, "coil height width"]) -> Complex[Tensor, "virtual height width"]:
        matrix = compression_matrix(image, num_virtual=self.num_virtual)
        largest = matrix.gather(1, matrix.abs().argmax(1, keepdim=True))
        return compress(image, matrix * torch.sgn(largest).conj())


class Normalize(ComplexTransform):
    """Returns (x - m) / (s + eps) for real and imaginary parts x alike, clipped to -clip … clip if asked for.

    m is the mean and s the standard deviation (of the population) of the magnitude over all coils and pixels of a
    sample. Unlike division alone, taking m from both parts does not keep the phase.

    Raises ValueError for a negative eps or a clip not above 0, and where a sample holds NaN or infinite values.
    """

    def __init__(self, *, eps: float = 1e-6, clip: float | None = None) -> None:
        super().__init__()
        if not 0 <= eps < math.inf or (clip is not None and not clip > 0):
            raise ValueError(f"eps must be at least 0 and finite, and clip above 0 or None, got {eps} and {clip}")
        self.eps, self.clip = eps, clip

    def transformed(self, pairs: Pairs, generators: Sequence[torch.Generator]) -> Pairs:
        """Return a normalised batch."""
        real, imaginary = pairs.unbind(-1)
        # Roots are taken a hair above 0, where they have no gradient.
        magnitude = (real.square() + imaginary.square() + 1e-30).sqrt()
        mean = magnitude.mean((1, 2, 3), keepdim=True)
        deviation = ((magnitude - mean).square().mean((1, 2, 3), keepdim=True) + 1e-30).sqrt()
        _check_finite(deviation, "their mean would be none either")
        scale = (deviation + self.eps).reciprocal()
        normalised = torch.addcmul((-mean * scale)[..., None], pairs, scale[..., None])
        return normalised if self.clip is None else normalised.clamp(-self.clip, self.clip)


class ToCompatibleTensor(ComplexTransform):
    """Returns `[2 × coil, height, width]`: channel 2c is the real part of coil c, 2c + 1 its imaginary part."""

    def transformed(
        self, pairs: Pairs, generators: Sequence[torch.Generator]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return a batch as real channels."""
        return pairs.movedim(-1, 2).flatten(1, 2).contiguous()


def _check_finite(values: Float[Tensor, "batch ..."], consequence: str) -> None:
    finite = values.isfinite().flatten(1).all(1)
    if not finite.all():
        wrong = (~finite).nonzero()[:, 0].tolist()
        raise ValueError(
            f"samples {wrong} of the batch hold NaN or infinite values, {consequence}: mend them or leave them out"
        )
