"""Random contrast: what is bright in one contrast of MRI is dark in another, and borders stay where they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from voxelwave.data.augmentations import Volumes
from voxelwave.registry import AUGMENTATIONS


def apply_curves(volume: Volumes, values: Float[Tensor, "batch channel knot"]) -> Volumes:
    """Send intensities through curves: lines between `values` at knots that part 0 to 1 evenly.

    What lies beyond 0 or 1 keeps its distance from it.
    """
    last = values.shape[-1] - 1
    values = values.to(volume.device, non_blocking=True).flatten(0, 1)
    inside = volume.clamp(0, 1)
    place = (inside.float() * last).flatten(2).flatten(0, 1)
    below = place.long().clamp_(max=last - 1)
    start = values.gather(1, below)
    curved = torch.lerp(start, values.gather(1, below + 1), place - below)
    return (curved.view(volume.shape) + (volume - inside)).to(volume.dtype).contiguous()


@AUGMENTATIONS.register("contrast")
class RandomContrast:
    """Gives a sample another contrast: a curve through random values, rising and falling, for each of its channels.

    A model that sees one contrast with labels learns so from borders, and not from which tissue is the brighter one.
    0, which is air, stays 0.

    Args:
        share: of the samples that are changed.
        knots: of the curve, at even distances from 0 to 1; many give neighbouring intensities nothing in common.

    Raises ValueError for a share outside 0 to 1 or fewer than two knots.

    Source: Billot et al., SynthSeg, Medical Image Analysis 2023, which draws the contrast of label maps; here it is
    drawn of the image, as in Ouyang et al., Causality-inspired single-source domain generalization, IEEE TMI 2023.
    """

    def __init__(self, *, share: float = 0.8, knots: int = 4) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"the share of samples with another contrast lies in 0 to 1, got {share}")
        if knots < 2:
            raise ValueError(f"a curve has at least two knots, got {knots}")
        self.share, self.knots = share, knots

    def draw(self, batch_size: int, channels: int, generator: torch.Generator) -> Float[Tensor, "batch channel knot"]:
        """Return the values at the knots of every channel; those of a straight line where a sample stays as it is."""
        values = torch.rand(batch_size, channels, self.knots, generator=generator)
        values[..., 0] = 0
        changed = torch.rand(batch_size, 1, 1, generator=generator) < self.share
        return torch.where(changed, values, torch.linspace(0, 1, self.knots))

    def __call__(self, volume: Volumes, generator: torch.Generator) -> Volumes:
        """Return `volume` in another contrast."""
        return apply_curves(volume, self.draw(volume.shape[0], volume.shape[1], generator))
