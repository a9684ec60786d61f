"""One vector for a whole scan: the mean of a backbone's features over the tokens that show something."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.data.batches.cuboids import InMemory
from voxelwave.data.batches.views import RandomView, fit, pad
from voxelwave.downstream.description import crop_size
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.ops.patches import patchify, token_grid
from voxelwave.ops.seeding import key_to_seed
from voxelwave.registry import BACKBONES

CROPS_AT_ONCE = 8  # a volume of as many training crops goes through the backbone as one
CROP_SHARE = 0.75  # of each side: two crops of a scan then share half of what they show, and differ in the rest

Volume = Float[Tensor, "channel depth height width"]
Framed = Float[Tensor, "channel framed_depth framed_height framed_width"]


def fitted_size(features: FeaturePyramid) -> Grid | None:
    """Return the size that whole scans had in the training of the backbone; None where it saw crops of them."""
    preprocessing = features.description.get("preprocessing", {})
    return crop_size(features.description) if preprocessing.get("view_share") else None


def frame(volume: Volume, patch_size: int, *, size: Grid | None) -> Framed:
    """Fit a whole scan into `size`, unless that is None, and pad it with air to sides that are whole patches."""
    if size is not None:
        volume = fit(volume, size)
    depth, height, width = (-(-side // patch_size) * patch_size for side in volume.shape[1:])
    return pad(volume, (depth, height, width))


def token_centres(shape: tuple[int, ...], patch_size: int, *, size: Grid | None) -> Float64[ndarray, "4 4"]:
    """Return the matrix from the place of a token in the grid of the framed scan to the voxel in the middle of it.

    Args:
        shape: of the scan, `[..., D, H, W]`, before it is framed.
        patch_size, size: as for `frame`.
    """
    sides = np.array(shape[-3:], dtype=np.float64)
    shown = sides if size is None else np.maximum(1, np.round(sides * min(np.array(size) / sides)))
    fitted = sides if size is None else np.maximum(shown, size)
    framed = np.ceil(fitted / patch_size) * patch_size
    before = (fitted - shown) // 2 + (framed - fitted) // 2
    matrix = np.diag([*(patch_size * sides / shown), 1.0])
    matrix[:3, 3] = (patch_size / 2 - before) * sides / shown - 0.5
    return matrix


def occupied_tokens(framed: Framed, patch_size: int) -> Bool[Tensor, "d h w"]:
    """Tell which tokens show something: those whose patch is not constant, as air and padding are."""
    patches = patchify(framed[None], patch_size)[0]
    varies = (patches.amax(2) > patches.amin(2)).any(1)
    on_grid: Tensor = varies.unflatten(0, token_grid(framed.shape, patch_size))
    return on_grid


def embed_volume(features: FeaturePyramid, volume: Volume, *, size: Grid | None) -> Float[Tensor, " embed"]:
    """Return the mean of the features over the occupied tokens, or over all where none is; on the CPU.

    Blocks of air around a head are not read, so that an embedding does not depend on how much air a scan shows. A
    volume of more than eight training crops goes through the backbone in tiles of the size of one.

    Args:
        features: of which the last level is taken.
        volume: a whole scan, channels in [0, 1].
        size: to fit it into; None takes it as it is. See `fitted_size`.

    Raises ValueError for another channel count than the backbone takes.
    """
    framed = frame(volume, features.strides[-1], size=size)
    return _embed(features, framed, torch.zeros(token_grid(framed.shape, features.strides[-1]), dtype=torch.bool))[0]


def embed_crops(
    features: FeaturePyramid, volume: Volume, *, count: int, generator: torch.Generator, size: Grid | None
) -> Float[Tensor, "{count} embed"]:
    """Return the embeddings of the crops that `random_crops` cuts."""
    crops = random_crops(features, volume, count=count, generator=generator, size=size)
    return torch.stack([embed_volume(features, crop, size=None) for crop in crops])


def random_crops(
    features: FeaturePyramid, volume: Volume, *, count: int, generator: torch.Generator, size: Grid | None
) -> Float[Tensor, "{count} channel crop_depth crop_height crop_width"]:
    """Cut crops around voxels that are not air, in whole patches: 3/4 of each side, at most that of a training crop."""
    patch_size = features.strides[-1]
    framed = frame(volume, patch_size, size=size)
    most = crop_size(features.description) or framed.shape[1:]
    depth, height, width = (
        patch_size * max(1, min(int(side * CROP_SHARE), largest) // patch_size)
        for side, largest in zip(framed.shape[1:], most, strict=True)
    )
    view, cuboid = RandomView(crop_size=(depth, height, width)), InMemory(framed)
    return torch.stack([view(cuboid, generator) for _ in range(count)])


def embed_tokens(
    features: FeaturePyramid, volume: Volume, *, chosen: Bool[Tensor, "d h w"], size: Grid | None
) -> Float[Tensor, "token embed"]:
    """Return the features of the chosen tokens of the framed scan, in raster order, on the CPU.

    Raises ValueError where a chosen token is not occupied.
    """
    return embed_scan(features, volume, chosen=chosen, size=size)[1]


def embed_scan(
    features: FeaturePyramid, volume: Volume, *, chosen: Bool[Tensor, "d h w"], size: Grid | None
) -> tuple[Float[Tensor, " embed"], Float[Tensor, "token embed"]]:
    """Return what `embed_volume` and `embed_tokens` return, of one pass through the backbone."""
    framed = frame(volume, features.strides[-1], size=size)
    if bool((chosen & ~occupied_tokens(framed, features.strides[-1])).any()):
        raise ValueError("a chosen token is air, whose features are not computed")
    return _embed(features, framed, chosen)


def untrained_twin(features: FeaturePyramid, *, seed: int) -> FeaturePyramid:
    """Return the same architecture with random weights, drawn by `seed`: a baseline for trained features."""
    architecture = features.description["architecture"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_to_seed(seed, "untrained twin"))
        backbone = BACKBONES.build(architecture["name"], features.in_channels, **architecture["settings"])
    twin = FeaturePyramid(backbone, depths=features.depths, description=features.description)
    return twin.to(next(features.parameters()).device).eval()


class _Tile(NamedTuple):
    """Features `[embed, d, h, w]` of the tokens at `place`, and which of them are `wanted`."""

    place: tuple[slice, ...]
    wanted: Tensor
    grid: Tensor


def _embed(
    features: FeaturePyramid, framed: Framed, chosen: Bool[Tensor, "d h w"]
) -> tuple[Float[Tensor, " embed"], Float[Tensor, "token embed"]]:
    total, count = torch.zeros(features.channels[-1], dtype=torch.float64), 0
    numbers = chosen.flatten().cumsum(0).view(chosen.shape) - 1
    rows = torch.zeros(int(chosen.sum()), features.channels[-1])
    for tile in _tiles(features, framed):
        total += tile.grid[:, tile.wanted].double().sum(1)
        count += int(tile.wanted.sum())
        asked = chosen[tile.place]
        rows[numbers[tile.place][asked]] = tile.grid[:, asked].T
    return (total / count).float(), rows


def _tiles(features: FeaturePyramid, framed: Framed) -> Iterator[_Tile]:
    """Yield the features of the framed scan, in one piece where that is small enough; tiles of air are left out."""
    patch_size = features.strides[-1]
    varies = occupied_tokens(framed, patch_size)
    if not bool(varies.any()):
        varies = torch.ones_like(varies)
    device = next(features.parameters()).device
    for place in _places(features, varies.shape):
        wanted = varies[place]
        if not bool(wanted.any()):
            continue
        voxels = tuple(slice(side.start * patch_size, side.stop * patch_size) for side in place)
        hidden = _surroundings(wanted, features)
        with torch.no_grad():
            grid = features.backbone(framed[(slice(None), *voxels)][None].to(device), hidden[None].to(device))
        yield _Tile(place, wanted, grid[0].float().cpu())


def _places(features: FeaturePyramid, grid: tuple[int, ...]) -> list[tuple[slice, ...]]:
    crop = crop_size(features.description)
    most = None if crop is None else tuple(max(1, side // features.strides[-1]) for side in crop)
    if most is None or prod(grid) <= CROPS_AT_ONCE * prod(most):
        return [tuple(slice(0, side) for side in grid)]
    cuts = (
        [slice(first, min(first + step, side)) for first in range(0, side, step)]
        for side, step in zip(grid, most, strict=True)
    )
    return list(product(*cuts))


def _surroundings(wanted: Bool[Tensor, "d h w"], features: FeaturePyramid) -> Bool[Tensor, "d h w"]:
    """Tell the tokens in whole blocks of air: as hidden ones they cost nothing, and nothing attends them."""
    side = 2 ** int(getattr(features.backbone, "wavelet_levels", 0))
    # A block is kept or hidden whole: half a block would take a learned token that a run may never have trained.
    kept = F.max_pool3d(wanted[None].float(), side, ceil_mode=True)
    for axis in (1, 2, 3):
        kept = kept.repeat_interleave(side, axis)
    return kept[0, : wanted.shape[0], : wanted.shape[1], : wanted.shape[2]] == 0
