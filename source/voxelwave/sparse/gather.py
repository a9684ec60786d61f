"""Sparse convolutions in plain torch: for each offset of the kernel, one product over the pairs of sites it joins.

It computes what is there and nothing else, on any device and in any precision. The rulebook of pairs is that of
submanifold sparse convolutional networks (Graham et al., CVPR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from voxelwave.sparse.volume import Sites, SparseVolume

_CENTRE = 13  # of the 27 offsets of a kernel of side 3, in raster order


@dataclass(frozen=True)
class Pairs:
    """For each offset of the kernel the rows that it reads and the rows that it adds to, none of them twice."""

    inputs: tuple[Int[Tensor, "_"], ...]
    outputs: tuple[Int[Tensor, "_"], ...]


def find_pairs(sites: Sites) -> Pairs:
    """Find which sites neighbour each other, for the 27 offsets of a kernel of side 3 in raster order."""
    # 1. With a rim of absent sites, a neighbour is a fixed step away, and nobody's neighbour lies in another sample.
    batch, *grid = sites.active.shape
    rows = torch.full((batch, *(length + 2 for length in grid)), -1, device=sites.active.device)
    rows[:, 1:-1, 1:-1, 1:-1] = sites.rows
    _, along_depth, along_height, along_width = rows.stride()
    steps = [i * along_depth + j * along_height + k * along_width for i, j, k in product((-1, 0, 1), repeat=3)]
    places = (rows >= 0).flatten().nonzero().squeeze(1)
    neighbours = rows.flatten()[places + torch.tensor(steps, device=places.device).unsqueeze(1)]
    # 2. Rows of the table are offsets, so that one search lists the pairs offset by offset.
    offsets, outputs = (neighbours >= 0).nonzero(as_tuple=True)
    counts = torch.bincount(offsets, minlength=len(steps)).tolist()
    inputs = neighbours[offsets, outputs]
    return Pairs(inputs.split(counts), outputs.split(counts))


class _Convolve(torch.autograd.Function):
    """Sum over offsets; sums are kept in fp32 where the products are in half precision."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weights: Tensor, pairs: Pairs) -> Tensor:
        ctx.save_for_backward(features, weights)
        ctx.pairs = pairs
        with torch.autocast(features.device.type, enabled=False):
            return _sum(features, weights, pairs.inputs, pairs.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, weights = ctx.saved_tensors
        inputs, outputs = ctx.pairs.inputs, ctx.pairs.outputs
        of_features = of_weights = None
        with torch.autocast(gradient.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                of_features = _sum(gradient, weights.mT, outputs, inputs)
            if ctx.needs_input_grad[1]:
                of_weights = torch.empty_like(weights)
                for offset, (read, written) in enumerate(zip(inputs, outputs, strict=True)):
                    here, there = _take(features, read, offset), _take(gradient, written, offset)
                    torch.mm(here.T, there, out=of_weights[offset])
        return of_features, of_weights, None


def _sum(features: Tensor, weights: Tensor, read: tuple[Tensor, ...], written: tuple[Tensor, ...]) -> Tensor:
    exact = torch.promote_types(features.dtype, torch.float32)
    total = (features @ weights[_CENTRE]).to(exact)
    for offset, (here, there) in enumerate(zip(read, written, strict=True)):
        if offset != _CENTRE and len(here):
            total.index_add_(0, there, (features.index_select(0, here) @ weights[offset]).to(exact))
    return total.to(features.dtype)


def _take(features: Tensor, rows: Tensor, offset: int) -> Tensor:
    """Every site is its own neighbour at the centre."""
    return features if offset == _CENTRE else features.index_select(0, rows)


class GatherBackend:
    """Convolutions on `SparseVolume` by pairs of sites; weights in the layout of conv3d, `[out, in, k, k, k]`."""

    name = "gather"

    def convolve(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 3 3 3"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Submanifold convolution of stride 1: the active sites stay as they are."""
        plans = volume.sites.plans
        if "gather" not in plans:
            plans["gather"] = find_pairs(volume.sites)
        features, weight = _as_autocast(volume.features, weight)
        weights = weight.permute(2, 3, 4, 1, 0).flatten(0, 2)
        summed: Tensor = _Convolve.apply(features, weights, plans["gather"])  # type: ignore[no-untyped-call]
        return SparseVolume(summed + bias.to(summed.dtype), volume.sites)

    def downsample(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 2 2 2"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Convolution of kernel 2, stride 2: a coarse site is active where one of its eight sites was."""
        coarse = volume.sites.coarse
        # Windows do not overlap: every site has one slot among the eight of its coarse site.
        sample, *place = volume.sites.coordinates.unbind(1)
        depth, height, width = (x // 2 for x in place)
        slot = coarse.rows[sample, depth, height, width]
        for x in place:
            slot = 2 * slot + x % 2
        eight = volume.features.new_zeros(8 * len(coarse.index), volume.features.shape[1])
        windows = eight.index_copy(0, slot, volume.features).unflatten(0, (-1, 8)).flatten(1)
        features = F.linear(windows, weight.permute(0, 2, 3, 4, 1).flatten(1), bias)
        return SparseVolume(features, coarse)


def _as_autocast(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Do for our own function what autocast does for torch's: it leaves fp64 alone."""
    device = features.device.type
    lowers = torch.is_autocast_enabled(device) and features.dtype is not torch.float64
    dtype = torch.get_autocast_dtype(device) if lowers else features.dtype
    return features.to(dtype), weight.to(dtype)
