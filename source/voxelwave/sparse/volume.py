"""Features that exist at some sites of a grid only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class SparseVolume:
    """Features on a grid and the sites that carry them; `features` is exactly 0 where `active` is False."""

    features: Float[Tensor, "batch channel depth height width"]
    active: Bool[Tensor, "batch 1 depth height width"]

    @classmethod
    def at(
        cls,
        features: Float[Tensor, "batch channel depth height width"],
        active: Bool[Tensor, "batch 1 depth height width"],
    ) -> SparseVolume:
        """Keep `features` at the active sites. Whatever stands elsewhere, NaN included, is gone."""
        return cls(features.masked_fill(~active, 0.0), active)

    def map_sites(self, function: Callable[[Tensor], Tensor]) -> SparseVolume:
        """Apply a function of `[..., channel]` to every active site by itself (a norm, an activation, a linear map)."""
        features = function(self.features.movedim(1, -1)).movedim(-1, 1)
        return SparseVolume.at(features, self.active)

    def densify(self, filling: Float[Tensor, "channel"]) -> Float[Tensor, "batch channel depth height width"]:
        """Return the whole grid, with `filling` where nothing was seen."""
        return self.features + filling.view(1, -1, 1, 1, 1) * ~self.active

    def __add__(self, other: SparseVolume) -> SparseVolume:
        return SparseVolume(self.features + other.features, self.active)
