"""Head CT as three windows: brain, blood, bone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Real
from numpy import ndarray

from voxelwave.data.modalities import UnusableVolume, without_trailing_ones
from voxelwave.registry import MODALITIES

WindowHU = tuple[float, float]

SOFT_TISSUE_HU = 20.0
# Files that store windows as scaled integers, and interpolation, miss the ends of [0, 1] by a little.
ROUNDING = 1e-3


@MODALITIES.register("ct")
class CT:
    """Raw Hounsfield units [D, H, W], or windows made before: [D, H, W, 3] or [D, H, W, 1, 3].

    Windows made before lie in [0, 1] or, as 8-bit images, in [0, 255].

    Args:
        windows_hu: (level, width) of the brain, the blood and the bone window.
    """

    channels: int = 3

    def __init__(self, *, windows_hu: tuple[WindowHU, WindowHU, WindowHU] = ((40, 80), (80, 200), (600, 2800))) -> None:
        if any(width <= 0 for _, width in windows_hu):
            raise ValueError(f"a window is (level, width) with a width above 0, got {windows_hu}")
        self.windows_hu = windows_hu

    def __call__(self, array: Real[ndarray, "..."], source: str) -> Float32[ndarray, "3 depth height width"]:
        """Return the three windows in [0, 1]; what is not a number becomes 0.

        Raises:
            UnusableVolume: for another shape, values neither in Hounsfield units nor windows, no contrast.
        """
        array = np.asarray(array, dtype=np.float32).reshape(without_trailing_ones(array.shape))
        windowed = array.ndim in (4, 5) and array.shape[-1] == 3 and array.shape[3:-1] in ((), (1,))
        if array.ndim != 3 and not windowed:
            raise UnusableVolume(f"CT needs [D, H, W] or three windows in the last axis, got shape {array.shape}")
        lowest, highest = float(np.nanmin(array, initial=np.inf)), float(np.nanmax(array, initial=-np.inf))
        if lowest >= highest:
            values = f"every value is {highest:g}" if lowest == highest else "no value is a number"
            raise UnusableVolume(f"CT holds no image: {values}")
        volume = (self._stored_windows if windowed else self._window)(array, lowest, highest)
        if np.isnan(volume.min()):
            np.nan_to_num(volume, copy=False, nan=0.0)
        return volume

    def _stored_windows(
        self, array: Float32[ndarray, "..."], lowest: float, highest: float
    ) -> Float32[ndarray, "3 depth height width"]:
        if lowest < -ROUNDING or highest > 255 + ROUNDING:
            raise UnusableVolume(f"windowed CT lies in [0, 1] or [0, 255], got {lowest:g} to {highest:g}")
        channels_last = array.reshape(*array.shape[:3], 3)
        volume = np.array(np.moveaxis(channels_last, -1, 0), order="C")
        if highest > 1 + ROUNDING:
            volume /= np.float32(255)
        return np.clip(volume, 0, 1, out=volume)

    def _window(
        self, array: Float32[ndarray, "depth height width"], lowest: float, highest: float
    ) -> Float32[ndarray, "3 depth height width"]:
        if lowest >= 0:
            raise UnusableVolume(
                f"CT is not in Hounsfield units: air is -1000, but the values are {lowest:g} to {highest:g}"
            )
        if highest < SOFT_TISSUE_HU:
            raise UnusableVolume(
                f"CT is not in Hounsfield units: tissue is above {SOFT_TISSUE_HU:g}, "
                f"but the values are {lowest:g} to {highest:g}"
            )
        volume = np.empty((3, *array.shape), dtype=np.float32)
        for channel, (level, width) in zip(volume, self.windows_hu, strict=True):
            np.subtract(array, np.float32(level - width / 2), out=channel)
            np.divide(channel, np.float32(width), out=channel)
            np.clip(channel, 0, 1, out=channel)
        return volume
