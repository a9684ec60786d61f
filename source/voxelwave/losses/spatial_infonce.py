"""InfoNCE between places: the shallow feature at a position finds the deep feature at the same position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
    (Euclidean, in tokens). One block of logits, `chunk_size` anchors × all candidates, is ever kept.
    Source: van den Oord et al., 2018, equation 4, with features of unit length.
    """
    precise = torch.promote_types(anchors.dtype, torch.float32)
    anchors, candidates = (F.normalize(x.to(precise), dim=-1) for x in (anchors, candidates))
    loss, hits = _ChunkedInfoNCE.apply(  # type: ignore[no-untyped-call]
        anchors, candidates, places, temperature, exclusion_radius, chunk_size
    )
    return loss, hits


class _ChunkedInfoNCE(torch.autograd.Function):
    """Computes the gradient beside the loss, chunk by chunk in one buffer, so that no logits wait for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        places: Tensor,
        temperature: float,
        exclusion_radius: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        wants_gradient = any(ctx.needs_input_grad[:2])
        count = len(anchors)
        buffer = anchors.new_empty(min(chunk_size, count), count)
        loss, hits = anchors.new_zeros(()), places.new_zeros(())
        for_anchors, for_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
        with torch.autocast(anchors.device.type, enabled=False):
            for start in range(0, count, chunk_size):
                # 1. Similarities of a chunk of anchors with every candidate; excluded neighbours drop out.
                rows = anchors[start : start + chunk_size]
                line = torch.arange(len(rows), device=rows.device)
                own = line + start
                logits = torch.mm(rows, candidates.T, out=buffer[: len(rows)]).div_(temperature)
                if exclusion_radius > 0:
                    near = torch.cdist(places[own].to(rows.dtype), places.to(rows.dtype)) <= exclusion_radius
                    near[line, own] = False
                    logits.masked_fill_(near, -torch.inf)
                hits += (logits.argmax(1) == own).sum()
                # 2. log Σ exp − own, with the largest similarity taken out; the buffer becomes the softmax.
                positive, largest = logits[line, own], logits.amax(1, keepdim=True)
                total = logits.sub_(largest).exp_().sum(1, keepdim=True)
                loss += (total.log() + largest).sum() - positive.sum()
                # 3. The gradient of the logits is the softmax, less 1 at the anchor's own place.
                if wants_gradient:
                    logits.div_(total)[line, own] -= 1.0
                    torch.mm(logits, candidates, out=for_anchors[start : start + chunk_size])
                    for_candidates.addmm_(logits.T, rows)
        ctx.save_for_backward(for_anchors.div_(temperature), for_candidates.div_(temperature))
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        for_anchors, for_candidates = ctx.saved_tensors
        return for_anchors * loss_gradient, for_candidates * loss_gradient, None, None, None, None


@CONTRASTIVE_LOSSES.register("spatial_infonce")
class SpatialInfoNCE(nn.Module):
    """Contrast shallow with deep feature grids, place by place within each volume; nothing is pooled.

    A projector of its own maps each depth to `projection_dim` dimensions. Where the grids differ in size, their
    common extent counts. Raises ValueError for a setting out of range.
    Example: `loss, alignment = SpatialInfoNCE((96, 96))(shallow, deep, counted)`.
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
        if min(projection_dim, chunk_size) < 1 or exclusion_radius < 0:
            raise ValueError(
                f"projection_dim and chunk_size must be at least 1 and exclusion_radius at least 0, "
                f"got {projection_dim}, {chunk_size} and {exclusion_radius}"
            )
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
