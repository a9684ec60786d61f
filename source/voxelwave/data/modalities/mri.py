"""MRI of any contrast as one channel: its intensities have no unit, so each volume is scaled by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Real
from numpy import ndarray

from voxelwave.data.modalities import Bounds, Modality
from voxelwave.data.reading.volume import without_trailing_ones
from voxelwave.errors import UnusableVolume
from voxelwave.registry import MODALITIES

SAMPLED_VOXELS = 200_000
FOREGROUND_SHARE = 0.05


@MODALITIES.register("mri")
class MRI(Modality):
    """[D, H, W] scaled so that two percentiles of its foreground become 0 and 1, clipped there.

    The foreground is what lies above 5 % of the way from the 0.1st to the 99.9th percentile of the volume, so
    that air and the zeros of a skull-stripped volume stay out of the statistics, however large their share.

    Args:
        percentiles: of the foreground, mapped to 0 and 1.

    Raises ValueError for percentiles that do not rise within 0 to 100.
    """

    channels: int = 1

    def __init__(self, *, percentiles: tuple[float, float] = (0.5, 99.5)) -> None:
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(f"percentiles rise within 0 to 100, got {percentiles}")
        self.percentiles = percentiles

    def bounds(self, array: Real[ndarray, "..."]) -> Bounds:
        """Return the percentiles of the foreground.

        Raises UnusableVolume for a shape other than [D, H, W], or a volume without contrast.
        """
        # Percentiles of 200,000 voxels are close enough; an odd step visits every row and plane.
        flat = _one_channel(array).reshape(-1)
        bounds = self._percentiles(flat[:: max(1, flat.size // SAMPLED_VOXELS) | 1]) or self._percentiles(flat)
        if bounds is None:
            finite = flat[np.isfinite(flat)]
            values = f"every value is {finite[0]:g}" if finite.size else "no value is a number"
            raise UnusableVolume(f"MRI holds no image: {values}")
        return bounds

    def scale(self, array: Real[ndarray, "..."], bounds: Bounds) -> Float32[ndarray, "1 depth height width"]:
        """Return the scaled volume; what is not a number counts as background, infinities as the nearest end."""
        low, high = np.float32(bounds[0]), np.float32(bounds[1])
        volume: Float32[ndarray, "depth height width"] = np.subtract(_one_channel(array), low, dtype=np.float32)
        np.divide(volume, high - low, out=volume)
        np.clip(volume, 0, 1, out=volume)
        if np.isnan(volume.min()):
            np.nan_to_num(volume, copy=False, nan=0.0)
        return volume[None]

    def baked(self) -> dict[str, Any]:
        """Return the percentiles, which cannot be computed of a crop."""
        return {"percentiles": list(self.percentiles)}

    def _percentiles(self, values: Real[ndarray, " voxel"]) -> Bounds | None:
        """Return the values that become 0 and 1, or None where `values` show no contrast."""
        values = _measured(values[np.isfinite(values)].astype(np.float32))
        if not values.size or values.min() == values.max():
            return None
        floor, ceiling = np.percentile(values, (0.1, 99.9))
        foreground = values[values > floor + FOREGROUND_SHARE * (ceiling - floor)]
        if foreground.size:
            low, high = np.percentile(foreground, self.percentiles).astype(np.float32)
            if low < high:
                return float(low), float(high)
        # Next to no foreground, or one of a single value: then the range itself is all there is.
        return float(values.min()), float(values.max())


def _measured(values: Float32[ndarray, " voxel"]) -> Float32[ndarray, " measured"]:
    """Return values without the one that stands for no measurement: a lowest one further below all than these reach."""
    above: Float32[ndarray, " measured"] = values[values > values.min(initial=np.inf)]
    if above.size and float(above.min()) - float(values.min()) > float(above.max()) - float(above.min()) > 0:
        return above
    return values


def _one_channel(array: Real[ndarray, "..."]) -> Real[ndarray, "depth height width"]:
    array = array.reshape(without_trailing_ones(array.shape))
    if array.ndim != 3:
        raise UnusableVolume(f"MRI needs [D, H, W], got shape {array.shape}")
    return array
