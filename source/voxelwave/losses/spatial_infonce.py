"""InfoNCE between places: the shallow feature at a position finds the deep feature at the same position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelwave.registry import CONTRASTIVE_LOSSES


def spatial_infonce(
    anchors: Float[Tensor, "position dim"],
    candidates: Float[Tensor, "position dim"],
    places: Int[Tensor, "position 3"],
    *,
    temperature: float,
    exclusion_radius: float = 0.0,
    chunk_size: int = 512,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return the summed loss of all anchors of one volume and how many of them find their own place first.

    Anchor i's positive is candidate i; its negatives are the other candidates further away than `exclusion_radius`
    (Euclidean, in tokens). The logits are kept for `chunk_size` anchors at a time, in the backward pass too.
    Source: van den Oord et al., 2018, equation 4, with features of unit length.
    """
    anchors, candidates = F.normalize(anchors, dim=-1), F.normalize(candidates, dim=-1)

    def chunk_loss(start: int, rows: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.arange(start, start + len(rows), device=rows.device)
        logits = rows @ keys.T / temperature
        if exclusion_radius > 0:
            near = torch.cdist(places[own].float(), places.float()) <= exclusion_radius
            near[torch.arange(len(own), device=rows.device), own] = False
            logits = logits.masked_fill(near, -torch.inf)
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(precise, own, reduction="sum"), (logits.argmax(1) == own).sum()

    losses, hits = [], []
    for start in range(0, len(anchors), chunk_size):
        rows = anchors[start : start + chunk_size]
        if torch.is_grad_enabled() and len(anchors) > chunk_size:
            # Recomputed in the backward pass, so that one chunk's logits exist at a time.
            loss, hit = checkpoint(chunk_loss, start, rows, candidates, use_reentrant=False, preserve_rng_state=False)
        else:
            loss, hit = chunk_loss(start, rows, candidates)
        losses.append(loss)
        hits.append(hit)
    return torch.stack(losses).sum(), torch.stack(hits).sum()


@CONTRASTIVE_LOSSES.register("spatial_infonce")
class SpatialInfoNCE(nn.Module):
    """Contrast shallow with deep feature grids, place by place within each volume; nothing is pooled.

    A projector of its own maps each depth to `projection_dim` dimensions. Where the grids differ in size, their
    common extent counts. Example: `loss, alignment = SpatialInfoNCE((96, 96))(shallow, deep, counted)`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        temperature: float = 0.07,
        projection_dim: int = 128,
        exclusion_radius: float = 0.0,
        chunk_size: int = 512,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.exclusion_radius = exclusion_radius
        self.chunk_size = chunk_size
        self.shallow, self.deep = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, projection_dim)) for width in channels
        )

    def forward(
        self,
        shallow: Float[Tensor, "batch c1 d1 h1 w1"],
        deep: Float[Tensor, "batch c2 d2 h2 w2"],
        counted: Bool[Tensor, "batch d3 h3 w3"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the mean loss over the counted places of all volumes, and the share that find themselves first.

        `counted` marks places that are visible and not air; the others are neither anchors nor negatives. A volume
        with fewer than two of them has nothing to contrast and adds nothing.
        """
        # 1. The extent that all three grids share.
        extent = [min(sides) for sides in zip(shallow.shape[2:], deep.shape[2:], counted.shape[1:], strict=True)]
        inside = tuple(slice(0, side) for side in extent)
        counted = counted[(slice(None), *inside)]
        counted = counted & (counted.sum((1, 2, 3), keepdim=True) > 1)
        # 2. Project all counted places at once.
        sample, *place = counted.nonzero().T
        places = torch.stack(place, 1)
        anchors = self.shallow(shallow[(slice(None), slice(None), *inside)].movedim(1, -1)[counted])
        candidates = self.deep(deep[(slice(None), slice(None), *inside)].movedim(1, -1)[counted])
        # 3. Contrast within each volume.
        counts = torch.bincount(sample, minlength=len(counted)).tolist()
        total, hits = anchors.sum() * 0.0 + candidates.sum() * 0.0, places.new_zeros(())
        for rows, keys, where in zip(
            anchors.split(counts), candidates.split(counts), places.split(counts), strict=True
        ):
            if len(rows):
                loss, hit = spatial_infonce(
                    rows,
                    keys,
                    where,
                    temperature=self.temperature,
                    exclusion_radius=self.exclusion_radius,
                    chunk_size=self.chunk_size,
                )
                total, hits = total + loss, hits + hit
        num_anchors = max(len(sample), 1)
        return total / num_anchors, hits / num_anchors
