"""Small turns, stretches and shifts: heads of other shapes and postures, where few are at hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from voxelwave.data.augmentations import Labels, Volumes
from voxelwave.registry import AUGMENTATIONS


def apply_affine(volume: Volumes, matrices: Float[Tensor, "batch 3 4"], *, nearest: bool = False) -> Volumes:
    """Look up each voxel at `matrix @ (place, 1)`, in voxels from the centre: linear or `nearest`, 0 outside."""
    # torch counts from -1 to 1 along each axis, the last axis first.
    half = torch.tensor(volume.shape[:1:-1], dtype=torch.float32) / 2
    matrices = matrices.flip(1)
    linear = matrices[:, :, :3].flip(2) * half / half[:, None]
    theta = torch.cat([linear, matrices[:, :, 3:] / half[:, None]], 2)
    # Half precision would lose places as well as values.
    values = volume if volume.dtype == torch.float64 else volume.float()
    places = F.affine_grid(theta.to(values), list(volume.shape), align_corners=False)
    moved: Tensor = F.grid_sample(values, places, mode="nearest" if nearest else "bilinear", align_corners=False)
    return moved.to(volume.dtype).contiguous()


@AUGMENTATIONS.register("affine")
class RandomAffine:
    """Turns, stretches and shifts each sample with `probability`, about its centre.

    Angles about the three axes lie between -degrees and degrees, the logarithm of each axis' stretch between
    -log_scale and log_scale, shifts between -shift and shift of the side. What enters from outside is 0.

    Raises ValueError for a probability outside [0, 1], an angle beyond 180 degrees, or a negative setting.
    """

    def __init__(
        self, *, probability: float = 1.0, degrees: float = 15.0, log_scale: float = 0.15, shift: float = 0.05
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of a movement lies between 0 (never) and 1 (always), got {probability}")
        if not (0 <= degrees <= 180 and 0 <= log_scale < math.inf and 0 <= shift < math.inf):
            raise ValueError(
                f"degrees lie between 0 and 180, log_scale and shift are finite and at least 0, got {degrees}, "
                f"{log_scale} and {shift}"
            )
        self.probability, self.degrees, self.log_scale, self.shift = probability, degrees, log_scale, shift

    def draw(
        self, batch_size: int, grid: tuple[int, int, int], generator: torch.Generator
    ) -> Float[Tensor, "batch 3 4"]:
        """Return where each sample is looked up."""
        moved = (torch.rand(batch_size, generator=generator) < self.probability).float()
        between = 2 * torch.rand(3, batch_size, 3, generator=generator) - 1
        angles, stretches, shifts = between * moved[:, None]
        # exp of a skew matrix is a turn about the axis of its vector.
        turn = torch.linalg.matrix_exp(_skew(angles * math.radians(self.degrees)))
        linear = turn * (stretches * self.log_scale).exp()[:, None]
        shift = shifts * self.shift * torch.tensor(grid, dtype=torch.float32)
        return torch.cat([linear, shift[:, :, None]], 2)

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume`, moved and interpolated linearly."""
        return apply_affine(volume, self._drawn(volume, generator))

    def moved(self, labels: Labels, generator: torch.Generator) -> Labels:
        """Return `labels` moved alike, each the nearest one."""
        return apply_affine(labels.float(), self._drawn(labels, generator), nearest=True).byte()

    def _drawn(self, volume: Tensor, generator: torch.Generator) -> Tensor:
        depth, height, width = volume.shape[2:]
        return self.draw(len(volume), (depth, height, width), generator)


def _skew(vectors: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 3 3"]:
    """Return the matrices of the cross products with `vectors`."""
    x, y, z = vectors.unbind(1)
    zero = torch.zeros_like(x)
    matrices: Tensor = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).unflatten(1, (3, 3))
    return matrices
