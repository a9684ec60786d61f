"""Features that exist only at some sites of a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Sites:
    """The active sites of a batch of grids; what follows from them is computed once, when it is first asked for."""

    def __init__(self, active: Bool[Tensor, "batch depth height width"]) -> None:
        # A copy: where a side is 1, torch takes some permuted strides for contiguous ones.
        self.active = active.clone(memory_format=torch.contiguous_format)
        #: What backends prepare for these sites, by a name that each chooses; freed with the sites, and not copied.
        self.plans: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Sites, (self.active,)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Sites along depth, height and width."""
        depth, height, width = self.active.shape[1:]
        return depth, height, width

    @cached_property
    def index(self) -> Int[Tensor, "site"]:
        """Places of the active sites in the flattened batch of grids, in raster order: the order of all features."""
        return self.active.flatten().nonzero().squeeze(1)

    @cached_property
    def coordinates(self) -> Int[Tensor, "site 4"]:
        """Sample, depth, height and width of every active site."""
        return torch.stack(torch.unravel_index(self.index, self.active.shape), 1)

    @cached_property
    def rows(self) -> Int[Tensor, "batch depth height width"]:
        """The row of every active site among the features, -1 elsewhere."""
        rows = torch.full((self.active.numel(),), -1, device=self.active.device)
        rows[self.index] = torch.arange(len(self.index), device=rows.device)
        return rows.view(self.active.shape)

    @cached_property
    def coarse(self) -> Sites:
        """The sites of the grid half as fine: active where one of eight was (SparK, ICLR 2023, section 3.2)."""
        odd = [length % 2 for length in reversed(self.grid)]
        padded = F.pad(self.active.float(), [amount for length in odd for amount in (0, length)])
        return Sites(F.max_pool3d(padded, 2) > 0)


@dataclass(frozen=True)
class SparseVolume:
    """A row of features for every active site of a batch of grids, in raster order; the other sites do not exist."""

    features: Float[Tensor, "site channel"]
    sites: Sites

    @classmethod
    def at(
        cls,
        grid: Float[Tensor, "batch channel depth height width"],
        active: Bool[Tensor, "batch depth height width"],
    ) -> SparseVolume:
        """Take the features of the active sites out of a grid. What stands elsewhere, NaN included, is never read."""
        return cls.on(grid, Sites(active))

    @classmethod
    def on(cls, grid: Float[Tensor, "batch channel depth height width"], sites: Sites) -> SparseVolume:
        """Take the features of `sites` out of a grid."""
        return cls(grid.movedim(1, -1).flatten(0, 3).index_select(0, sites.index), sites)

    def map_sites(self, function: Callable[[Tensor], Tensor]) -> SparseVolume:
        """Apply a function of `[site, channel]` to every site by itself (a norm, an activation, a linear map)."""
        return SparseVolume(function(self.features), self.sites)

    def densify(
        self, filling: Float[Tensor, "channel"] | None = None
    ) -> Float[Tensor, "batch channel depth height width"]:
        """Return the whole grid, with `filling`, or 0, where nothing is active; channels lie last in memory."""
        batch, *grid = self.sites.active.shape
        places, channels = self.sites.active.numel(), self.features.shape[1]
        if filling is None:
            everywhere = self.features.new_zeros(places, channels)
        else:
            everywhere = filling.to(self.features.dtype).expand(places, channels)
        filled = everywhere.index_copy(0, self.sites.index, self.features)
        whole: Tensor = filled.unflatten(0, (batch, *grid)).movedim(-1, 1)
        return whole

    def __add__(self, other: SparseVolume) -> SparseVolume:
        return SparseVolume(self.features + other.features, self.sites)
