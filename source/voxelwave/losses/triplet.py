"""The triplet loss: two views of one phantom lie closer to each other than to another phantom, by a margin."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from voxelwave.registry import METRIC_LOSSES

# First view, second view, another phantom: unit vectors, and the numbers of their phantoms.
Triplets = Float[Tensor, "3 batch dim"]
Numbers = Int[Tensor, "3 batch"]
Indices = tuple[Tensor, Tensor, Tensor]

Mining = Literal["none", "semihard", "hard"]
Schedule = Literal["constant", "linear", "cosine"]
FURTHEST = 2.0  # of unit vectors


def triplet_distances(triplets: Triplets) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return the Euclidean distances of each first view from the second (d_pos) and from the other phantom (d_neg)."""
    first, second, other = triplets
    return torch.linalg.vector_norm(first - second, dim=-1), torch.linalg.vector_norm(first - other, dim=-1)


def scheduled_margin(step: int, *, margin: float, start_margin: float, steps: int, schedule: Schedule) -> float:
    """Return the margin at `step`: from `start_margin` to `margin` over `steps`, along a line or half a cosine."""
    progress = 1.0 if schedule == "constant" else min(step / steps, 1.0)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start_margin + (margin - start_margin) * progress


@METRIC_LOSSES.register("triplet")
class TripletLoss(nn.Module):
    """The mean of max(d_pos − d_neg + margin, 0) over triplets, with Euclidean distances of unit vectors.

    `mining` says which triplets count in training. none: those given. The others choose among all of a batch, views of
    one phantom told by its number. semihard: every one whose negative is further than the positive, but within the
    margin. hard: for each vector the furthest positive and the nearest negative.
    `margin_schedule` leads from `start_margin` to `margin` over `schedule_steps`. In evaluation nothing is mined, and
    the objective takes the final margin, so that losses of different epochs compare.

    Raises ValueError for a margin outside 0…2, or a schedule without steps.
    Source: Schroff et al., FaceNet, 2015, equation 3; Hermans et al., In Defense of the Triplet Loss, 2017, equation 5.
    """

    margin_acts: ClassVar = True

    def __init__(
        self,
        *,
        margin: float = 0.2,
        mining: Mining = "none",
        margin_schedule: Schedule = "constant",
        start_margin: float = 0.0,
        schedule_steps: int = 0,
    ) -> None:
        super().__init__()
        if not (0 <= margin < FURTHEST and 0 <= start_margin < FURTHEST):
            raise ValueError(
                f"unit vectors lie at most {FURTHEST:g} apart: margin and start_margin must be at least 0 and below "
                f"that, got {margin} and {start_margin}"
            )
        if margin_schedule != "constant" and schedule_steps < 1:
            raise ValueError(f"a {margin_schedule} margin_schedule needs schedule_steps of 1 or more: {schedule_steps}")
        self.margin = margin
        self.mining = mining
        self.margin_schedule = margin_schedule
        self.start_margin = start_margin
        self.schedule_steps = schedule_steps

    def margin_at(self, step: int) -> float:
        """Return the margin of a training step; it depends on nothing else."""
        return scheduled_margin(
            step,
            margin=self.margin,
            start_margin=self.start_margin,
            steps=self.schedule_steps,
            schedule=self.margin_schedule,
        )

    def forward(
        self, triplets: Triplets, numbers: Numbers, margin: float
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the loss, and `mined`, the share of all triplets of the batch that were chosen, where any are."""
        if self.mining == "none" or not self.training:
            d_pos, d_neg = triplet_distances(triplets)
            return (d_pos - d_neg + margin).relu().mean(), {}
        vectors, labels = triplets.flatten(0, 1), numbers.flatten()
        anchor, positive, negative = self._mine(vectors.detach(), labels, margin)
        # Not by way of a product, which rounds the distances of near vectors to steps of 0.0003.
        distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        errors = (distances[anchor, positive] - distances[anchor, negative] + margin).relu()
        # The sum keeps a batch without a triplet trainable, and lets a NaN through that no miner would choose.
        loss = errors.sum() / max(len(errors), 1) + 0.0 * vectors.sum()
        same = labels[:, None] == labels
        possible = ((same.sum(1) - 1) * (~same).sum(1)).sum()
        return loss, {"mined": len(errors) / possible.clamp_min(1)}

    def _mine(self, vectors: Tensor, labels: Tensor, margin: float) -> Indices:
        """Return the rows of the anchors, positives and negatives that were chosen."""
        from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner

        # Made anew for each batch, since the margin of a step is a function of it and no state.
        miner = BatchHardMiner() if self.mining == "hard" else TripletMarginMiner(margin, type_of_triplets=self.mining)
        anchor, positive, negative = miner(vectors, labels)
        return anchor, positive, negative
