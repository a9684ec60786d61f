"""Scans as a network sees them, stored or not: channels in [0, 1], axes towards RAS."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from voxelwave.data.foreground import CroppedAt, to_foreground, was_cropped
from voxelwave.data.modalities import Bounds, Modality
from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.reading.volume import Affine, Spacing, Volume, VolumeInfo, resample
from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import UnusableVolume

Values = Float32[ndarray, "..."]


class Scaled(NamedTuple):
    """A volume as a network sees it.

    Attributes:
        affine: voxel to mm, RAS+.
        source: grid and affine of the file that it was read from, or that the stored volume was made of.
        modality: its name, as a `ScanReader` tells it; "" where the reader was handed what scales the scan.
    """

    volume: Float[Tensor, "channel depth height width"]
    affine: Affine
    source: VolumeInfo
    modality: str = ""


def mended(array: Values, modality: Modality) -> tuple[Values, int]:
    """Replace what is not finite by the nearest end of the finite values (NaN: the lowest); count it.

    Before it is resampled: NaN would spread to every voxel that is interpolated from it.
    """
    finite = np.isfinite(array)
    count = int(array.size - finite.sum())
    if count and count < array.size:
        low, high = array.min(where=finite, initial=np.inf), array.max(where=finite, initial=-np.inf)
        least = modality.lowest if array.ndim == 3 else -np.inf
        array = np.nan_to_num(array, nan=max(float(low), least), posinf=float(high), neginf=float(low))
    return array, count


def without_padding(array: Values, modality: Modality) -> Values:
    """Raise padding, which lies below all that the modality measures, to the least of it; windows have none."""
    return array if array.ndim > 3 or modality.lowest == -np.inf else np.maximum(array, np.float32(modality.lowest))


def read_scaled(path: Path, modality: Modality, *, spacing_mm: Spacing | None = None) -> Scaled:
    """Read a whole image, stored or not, towards RAS, as channels in [0, 1], resampled where `spacing_mm` is given.

    Raises UnusableVolume with a short reason, also for a label map.
    """
    if is_stored(path):
        return scale_stored(StoredVolume(path), modality, spacing_mm=spacing_mm)
    volume = read_volume(path, channels=modality.channels)
    if reason := label_map_reason(path, volume.array):
        raise UnusableVolume(reason)
    return scale(volume, modality, spacing_mm=spacing_mm)


def scale_stored(
    stored: StoredVolume, modality: Modality, *, spacing_mm: Spacing | None = None, crop_at: CroppedAt | None = None
) -> Scaled:
    """Read a stored volume whole, resample it to another `spacing_mm`, and scale it; see `scale`.

    Raises DamagedVolume where a chunk is damaged.
    """
    volume = Volume(stored.read(), stored.affine)
    # What was cropped stays so: on another grid the foreground would begin elsewhere.
    crop_at = None if was_cropped(stored) else crop_at
    return _scaled(volume, modality, stored.info.bounds, stored.source, spacing_mm=spacing_mm, crop_at=crop_at)


def scale(
    volume: Volume, modality: Modality, *, spacing_mm: Spacing | None = None, crop_at: CroppedAt | None = None
) -> Scaled:
    """Resample a volume that was read from a file to another `spacing_mm`, and scale it.

    With `crop_at` it is brought to that spacing before, and loses the air around it, as `voxelwave prepare` does it.

    Raises UnusableVolume where it is no image of the modality.
    """
    source = volume.source
    assert source is not None
    array, _ = mended(volume.array, modality)
    volume = volume._replace(array=without_padding(array, modality))
    return _scaled(volume, modality, None, source, spacing_mm=spacing_mm, crop_at=crop_at)


def _scaled(
    volume: Volume,
    modality: Modality,
    bounds: Bounds | None,
    source: VolumeInfo,
    *,
    spacing_mm: Spacing | None,
    crop_at: CroppedAt | None,
) -> Scaled:
    if crop_at is not None:
        volume = resample(volume, None if crop_at == "native" else crop_at)
        bounds = bounds or modality.bounds(volume.array)
        volume = to_foreground(volume, modality, bounds)
    if spacing_mm is not None:
        volume = resample(volume, spacing_mm)
    bounds = bounds or modality.bounds(volume.array)
    return Scaled(torch.from_numpy(modality.scale(volume.array, bounds)), volume.affine, source)
