"""Metric learning of triplets: two views of one phantom and one of another, embedded and compared."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from voxelwave.contracts import StepOutput
from voxelwave.losses.triplet import triplet_distances

Images = Float[Tensor, "image channel height width"]
Numbers = Int[Tensor, "2 batch"]


@runtime_checkable
class MetricLoss(Protocol):
    """What the objective asks of a loss; `losses.triplet` and `losses.ntxent` are such.

    `margin` says which triplets the logs call violations; where `margin_acts` it is a part of the loss, too.
    """

    margin: float
    margin_acts: ClassVar[bool]

    def margin_at(self, step: int) -> float:
        """Return the margin of a training step."""
        ...

    def __call__(self, triplets: Tensor, numbers: Tensor, margin: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of unit vectors `[3, batch, dim]`, and what else there is to log."""
        ...


class MetricLearning(nn.Module):
    """Embeds the images of a batch of triplets and compares their unit vectors by `loss`.

    In evaluation the margin is that which training ends with.
    """

    def __init__(self, model: nn.Module, loss: MetricLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, images: Images, numbers: Numbers, step: int) -> StepOutput:
        """Return the loss of a batch at training step `step`.

        `images` are the first views of some phantoms, then their second views, then views of other phantoms;
        `numbers` are those of the first phantoms and of the others.

        Logs: loss, d_pos, d_neg, violations (the share with d_pos + margin > d_neg), margin, and those of the loss.
        """
        return self.compare(self.model(images).unflatten(0, (3, -1)), numbers, step)

    def compare(self, vectors: Float[Tensor, "3 batch dim"], numbers: Numbers, step: int) -> StepOutput:
        """Return the loss of embedded vectors: first views, second views, other phantoms; see `forward`."""
        margin = self.loss.margin_at(step) if self.training else self.loss.margin
        # Half precision would round away what the margin asks for.
        with torch.autocast(vectors.device.type, enabled=False):
            triplets = F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
            loss, logs = self.loss(triplets, numbers[[0, 0, 1]], margin)
            d_pos, d_neg = triplet_distances(triplets.detach())
        # A distance that is no number violates the margin, too.
        logs = {
            "loss": loss.detach(),
            "d_pos": d_pos.mean(),
            "d_neg": d_neg.mean(),
            "violations": (~(d_pos + margin <= d_neg)).to(d_pos.dtype).mean(),
            "margin": torch.tensor(margin),
            **logs,
        }
        return StepOutput(loss, logs)
