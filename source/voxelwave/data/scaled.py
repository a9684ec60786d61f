"""Scans as a network sees them, stored or not: channels in [0, 1], axes towards RAS."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from voxelwave.data.modalities import Modality
from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.reading.volume import Affine, Spacing, resample
from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import UnusableVolume


class Scaled(NamedTuple):
    """A volume as a network sees it, and the way from its voxels to mm (RAS+)."""

    volume: Float[Tensor, "channel depth height width"]
    affine: Affine


def read_scaled(path: Path, modality: Modality, *, spacing_mm: Spacing | None = None) -> Scaled:
    """Read a whole image, stored or not, towards RAS, as channels in [0, 1], resampled where `spacing_mm` is given.

    Raises:
        UnusableVolume: with a short reason, also for a label map.
    """
    if is_stored(path):
        stored = StoredVolume(path)
        scaled = torch.from_numpy(modality.scale(stored.read(), stored.info.bounds))
        return Scaled(scaled, stored.affine)
    volume = read_volume(path, channels=modality.channels)
    if reason := label_map_reason(path, volume.array):
        raise UnusableVolume(reason)
    if spacing_mm is not None:
        volume = resample(volume, spacing_mm)
    return Scaled(torch.from_numpy(modality(volume.array)), volume.affine)
