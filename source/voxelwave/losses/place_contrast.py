"""InfoNCE between two views of one head: the feature of a place finds that of the same place in the other view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def place_infonce(
    one: Float[Tensor, "place dim"],
    other: Float[Tensor, "place dim"],
    places_mm: Float[Tensor, "place 3"],
    heads: Int[Tensor, " place"],
    persons: Int[Tensor, " place"] | None = None,
    *,
    temperature: float,
    margin_mm: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean loss over the places of both views, and the share of those that find each other first.

    Row i of both is of place i. The negatives of a place are the other places of its own head further away than
    `margin_mm` (along any axis), and all places of the other heads: in the other view and in its own. Heads of one of
    `persons` are one at another time: nobody knows which of their places are the same, and none are negatives. Without
    those of its own view, the features of two contrasts may lie apart at little cost, along directions that tell no
    places apart, and what is fitted on one does not read the other. Source: Chen et al., 2020, "SimCLR", equation 1.
    """
    precise = torch.promote_types(one.dtype, torch.float32)
    features = F.normalize(torch.cat([one, other]).to(precise), dim=-1)
    with torch.autocast(one.device.type, enabled=False):
        logits = features @ features.T / temperature
        near = (places_mm[:, None] - places_mm).abs().amax(-1) <= margin_mm
        same = heads[:, None] == heads
        near &= same
        if persons is not None:
            near |= (persons[:, None] == persons) & ~same
        near.fill_diagonal_(True)
        # Itself and its neighbours are no negatives in either view; in the other view itself is what is to be found.
        elsewhere = near.clone().fill_diagonal_(False)
        left_out = torch.cat([torch.cat([near, elsewhere], 1), torch.cat([elsewhere, near], 1)])
        logits = logits.masked_fill(left_out, -torch.inf)
        own = torch.arange(2 * len(one), device=one.device).roll(len(one))
        loss = F.cross_entropy(logits, own)
        found = (logits.argmax(1) == own).float().mean()
    return loss, found.detach()


class PlaceContrast(nn.Module):
    """Contrast places of two views of the same heads.

    Features are normalised over the places of both views together (as in the projection head of Chen et al., 2020,
    "SimCLR"): at the start all are nearly alike, and without that hundreds of steps pass before any two places are told
    apart. With a `projection_dim` above 0 a projector comes before, which is dropped afterwards; what tells the
    contrasts apart may then stay in the features.
    Raises ValueError for a setting out of range.
    Example: `loss, alignment = PlaceContrast(96)(one, other, places_mm, heads)`.
    """

    def __init__(
        self, channels: int, *, temperature: float = 0.1, margin_mm: float = 0.0, projection_dim: int = 0
    ) -> None:
        super().__init__()
        if temperature <= 0 or margin_mm < 0 or projection_dim < 0:
            raise ValueError(
                f"temperature is above 0, margin_mm and projection_dim at least 0, got {temperature}, "
                f"{margin_mm} and {projection_dim}"
            )
        self.temperature, self.margin_mm = temperature, margin_mm
        layers: list[nn.Module] = []
        if projection_dim:
            layers = [
                nn.Linear(channels, channels, bias=False),
                nn.BatchNorm1d(channels, track_running_stats=False),
                nn.GELU(),
                nn.Linear(channels, projection_dim, bias=False),
            ]
        self.projector = nn.Sequential(
            *layers, nn.BatchNorm1d(projection_dim or channels, affine=False, track_running_stats=False)
        )

    def forward(
        self,
        one: Float[Tensor, "place channel"],
        other: Float[Tensor, "place channel"],
        places_mm: Float[Tensor, "place 3"],
        heads: Int[Tensor, " place"],
        persons: Int[Tensor, " place"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the loss and the share of places that find themselves first; both are 0 for fewer than two places."""
        if len(one) < 2:
            nothing = sum(parameter.sum() for parameter in self.projector.parameters()) * 0.0 + one.sum() * 0.0
            return nothing, nothing.detach()
        projected = self.projector(torch.cat([one, other]))
        return place_infonce(
            *(*projected.chunk(2), places_mm, heads, persons), temperature=self.temperature, margin_mm=self.margin_mm
        )
