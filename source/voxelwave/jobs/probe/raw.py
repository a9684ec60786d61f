"""The reference of every probe: what the voxels themselves tell, without any network."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from torch import Tensor

from voxelwave.contracts import Grid
from voxelwave.downstream.embedding import Framed, Volume, frame, occupied_tokens
from voxelwave.ops.patches import patchify, token_grid

QUANTILES = torch.linspace(0, 1, 11)
PLACES = 3  # the last features of a token


def raw_tokens(framed: Framed, patch_size: int, *, chosen: Bool[Tensor, "d h w"]) -> Float[Tensor, "token raw"]:
    """Return the voxels of the chosen patches, channel by channel, and their place in the scan.

    The place is that of the centre of the patch, from 0 to 1 along each side of the framed scan.
    """
    patches = patchify(framed[None], patch_size)[0][chosen.flatten()].flatten(1)
    places = (chosen.nonzero() + 0.5) / torch.tensor(token_grid(framed.shape, patch_size))
    return torch.cat([patches, places], dim=1)


def raw_scan(volume: Volume, patch_size: int, *, size: Grid | None) -> Float[Tensor, " raw"]:
    """Return the mean and the deciles, from the lowest to the highest value, of each channel's voxels.

    Those of the occupied patches count, as in `embed_volume`, or of all where none is occupied.
    """
    framed = frame(volume, patch_size, size=size)
    patches, occupied = patchify(framed[None], patch_size)[0], occupied_tokens(framed, patch_size).flatten()
    values = (patches[occupied] if bool(occupied.any()) else patches).movedim(1, 0).flatten(1)
    # torch.quantile takes 16 million values at most.
    ordered = values.sort(1).values
    deciles = ordered[:, (QUANTILES * (ordered.shape[1] - 1)).round().long()]
    return torch.cat([values.double().mean(1, keepdim=True).float(), deciles], dim=1).flatten()


def over_channels(
    raw: Float32[ndarray, "sample raw"], channels: int, *, places: int = 0
) -> Float32[ndarray, "sample raw1"]:
    """Return raw features averaged over the channels, as those of modalities with other channel counts are compared.

    `places` is the number of columns at the end that belong to no channel.
    """
    width = raw.shape[1] - places
    values = torch.from_numpy(raw[:, :width]).unflatten(1, (channels, width // channels)).mean(1)
    averaged: Float32[ndarray, "sample raw1"] = torch.cat([values, torch.from_numpy(raw[:, width:])], dim=1).numpy()
    return averaged
