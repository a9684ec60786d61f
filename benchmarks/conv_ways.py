"""Other ways to compute a submanifold convolution in plain torch, to hold the pairs of sparse/gather.py against."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from voxelwave.sparse.volume import Sites, SparseVolume


def _with_nothing(features: Tensor) -> Tensor:
    """Append a row of zeros, which row -1 is."""
    return torch.cat((features, features.new_zeros(1, features.shape[1])))


def _around(sites: Sites, corners: Tensor, side: int) -> Tensor:
    """Return the rows of the sites in cubes of `side` around the places that `corners` lie one before, -1 for none."""
    rows = F.pad(sites.rows, (1,) * 6, value=-1)
    sample, depth, height, width = (x.unsqueeze(1) for x in corners.unbind(1))
    i, j, k = torch.tensor(list(product(range(side), repeat=3)), device=rows.device).unbind(1)
    return rows[sample, depth + i, height + j, width + k]


class _Table(torch.autograd.Function):
    """One product with all 27 neighbours side by side; an absent one is a row of zeros."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weights: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(features, weights)
        ctx.table = table
        return _with_nothing(features)[table].flatten(1) @ weights.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        features, weights = ctx.saved_tensors
        # Who is my neighbour on one side has me on the other.
        of_features = _with_nothing(gradient)[ctx.table].flatten(1) @ weights.flip(0).mT.flatten(0, 1)
        of_weights = _with_nothing(features)[ctx.table].flatten(1).T @ gradient
        return of_features, of_weights.view_as(weights), None


def table(volume: SparseVolume, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve by one large product of rows of 27 neighbours."""
    neighbours = _around(volume.sites, volume.sites.coordinates, 3)
    weights = weight.permute(2, 3, 4, 1, 0).flatten(0, 2)
    summed: Tensor = _Table.apply(volume.features, weights, neighbours)
    return summed + bias


def halo(volume: SparseVolume, weight: Tensor, bias: Tensor, *, side: int) -> Tensor:
    """Convolve visible blocks of `side` sites, with one site around each, by the dense kernel as a batch."""
    blocks = (volume.sites.active[:, ::side, ::side, ::side]).nonzero()
    corners = blocks * torch.tensor([1, side, side, side], device=blocks.device)
    around = _around(volume.sites, corners, side + 2)
    cubes = _with_nothing(volume.features)[around].unflatten(1, (side + 2,) * 3).movedim(-1, 1)
    convolved = F.conv3d(cubes, weight, bias).movedim(1, -1).flatten(0, 3)
    # From block after block to raster order.
    inside = around.unflatten(1, (side + 2,) * 3)[:, 1:-1, 1:-1, 1:-1].flatten()
    return torch.empty_like(convolved).index_copy(0, inside, convolved)


def pairs_by_autograd(volume: SparseVolume, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve by pairs as sparse/gather.py does, but with the gradient that autograd makes of it."""
    neighbours = _around(volume.sites, volume.sites.coordinates, 3)
    weights = weight.permute(2, 3, 4, 1, 0).flatten(0, 2)
    total = bias.expand(len(volume.features), -1)
    for offset, of_offset in enumerate(weights):
        (there,) = (neighbours[:, offset] >= 0).nonzero(as_tuple=True)
        total = total.index_add(0, there, volume.features[neighbours[there, offset]] @ of_offset)
    return total
