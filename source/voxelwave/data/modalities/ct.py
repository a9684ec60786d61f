"""Head CT as three windows: brain, blood, bone."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float32, Real
from numpy import ndarray

from voxelwave.data.modalities import Bounds, Modality, Packed
from voxelwave.data.reading.volume import without_trailing_ones
from voxelwave.errors import UnusableVolume
from voxelwave.registry import MODALITIES

WindowHU = tuple[float, float]

SOFT_TISSUE_HU = 20.0
AIR_HU = -500.0
OFFSET = 1024
LOWEST_HU = -1100.0  # air with its noise; what is below was never measured
FEW_UNITS = 100.0
# Of a head in Hounsfield units less lies about 1024 above soft tissue, as compact bone does, than between the two.
BETWEEN_HU, RAISED_HU = (150.0, 900.0), (900.0, 1250.0)
HIGHEST_AIR_HU = -900.0
PADDING_GAP_HU = 100.0
SAMPLED_VOXELS = 500_000
# Fat, air or at least the noise of fluid; a share, since a single voxel may have any value.
BELOW_WATER_HU, BELOW_WATER_SHARE = -10.0, 5e-4
# Of a brain alone, around which everything was set to one value.
BACKGROUND_SHARE, BRAIN_HU = 0.3, (10.0, 70.0)
# Files that store windows as scaled integers, and interpolation, miss the ends of [0, 1] by a little.
ROUNDING = 1e-3


@MODALITIES.register("ct")
class CT(Modality):
    """Raw Hounsfield units [D, H, W], or windows made before: [D, H, W, 3] or [D, H, W, 1, 3].

    Windows made before lie in [0, 1] or, as 8-bit images, in [0, 255].

    Args:
        windows_hu: (level, width) of the brain, the blood and the bone window.
        require_hu: refuse values that do not look like Hounsfield units; False takes them as such all the same.

    Raises ValueError for a window without width.
    """

    channels: int = 3
    lowest: ClassVar[float] = -1024.0

    def __init__(
        self,
        *,
        windows_hu: tuple[WindowHU, WindowHU, WindowHU] = ((40, 80), (80, 200), (600, 2800)),
        require_hu: bool = True,
    ) -> None:
        if any(width <= 0 for _, width in windows_hu):
            raise ValueError(f"a window is (level, width) with a width above 0, got {windows_hu}")
        self.windows_hu, self.require_hu = windows_hu, require_hu

    def bounds(self, array: Real[ndarray, "..."]) -> Bounds:
        """Return what stands for 0 and 1 in windows made before, or the range of Hounsfield units.

        Raises UnusableVolume for another shape, values neither in Hounsfield units nor windows, no contrast.
        """
        array, windowed = _canonical(array)
        lowest, highest = float(np.nanmin(array, initial=np.inf)), float(np.nanmax(array, initial=-np.inf))
        if lowest >= highest:
            values = f"every value is {highest:g}" if lowest == highest else "no value is a number"
            raise UnusableVolume(f"CT holds no image: {values}")
        if not windowed:
            if self.require_hu:
                _check_hounsfield_units(array)
            return lowest, highest
        if lowest < -ROUNDING or highest > 255 + ROUNDING:
            raise UnusableVolume(
                f"windowed CT lies in [0, 1] or [0, 255], got {lowest:g} to {highest:g}; prepare three time points "
                f"with --four-d first or all"
            )
        return 0.0, 255.0 if highest > 1 + ROUNDING else 1.0

    def scale(self, array: Real[ndarray, "..."], bounds: Bounds) -> Float32[ndarray, "3 depth height width"]:
        """Return the three windows in [0, 1]; what is not a number becomes 0."""
        array, windowed = _canonical(array)
        if windowed:
            volume = np.array(np.moveaxis(array.reshape(*array.shape[:3], 3), -1, 0), order="C")
            if bounds[1] != 1:
                volume /= np.float32(bounds[1])
            np.clip(volume, 0, 1, out=volume)
        else:
            volume = np.empty((3, *array.shape), dtype=np.float32)
            for channel, (level, width) in zip(volume, self.windows_hu, strict=True):
                np.subtract(array, np.float32(level - width / 2), out=channel)
                np.divide(channel, np.float32(width), out=channel)
                np.clip(channel, 0, 1, out=channel)
        if np.isnan(volume.min()):
            np.nan_to_num(volume, copy=False, nan=0.0)
        return volume

    def foreground(self, array: Real[ndarray, "..."], bounds: Bounds) -> Bool[ndarray, "depth height width"]:
        """Tell which voxels are not air, nor of the most frequent value where the surroundings were removed."""
        if _canonical(array)[1]:
            return super().foreground(array, bounds)
        if bounds[0] < AIR_HU:
            return np.asarray(array > AIR_HU)
        values, counts = np.unique(array, return_counts=True)
        return np.asarray(array != values[counts.argmax()])

    def pack(self, array: Float32[ndarray, "..."], bounds: Bounds) -> Packed:
        """Return Hounsfield units rounded to whole ones, and windows as any other volume."""
        if array.ndim != 3:
            return super().pack(array, bounds)
        if not self.require_hu and bounds[1] - bounds[0] < FEW_UNITS:  # values in another unit, such as 0 to 1
            return Packed(array.astype(np.float16), bounds)
        limits = np.iinfo(np.int16)
        return Packed(np.rint(np.clip(array, limits.min, limits.max)).astype(np.int16), bounds)


def _canonical(array: Real[ndarray, "..."]) -> tuple[Float32[ndarray, "..."], bool]:
    """Return float32 values, and whether they are windows made before."""
    array = np.asarray(array, dtype=np.float32).reshape(without_trailing_ones(array.shape))
    windowed = array.ndim in (4, 5) and array.shape[-1] == 3 and array.shape[3:-1] in ((), (1,))
    if array.ndim != 3 and not windowed:
        raise UnusableVolume(f"CT needs [D, H, W] or three windows in the last axis, got shape {array.shape}")
    return array, windowed


def _check_hounsfield_units(array: Float32[ndarray, "depth height width"]) -> None:
    """Raise UnusableVolume for values in which neither air nor soft tissue lies where Hounsfield units have them.

    What most voxels say counts, and not the two most extreme ones: padding beyond the field of view may have any value
    below air, and interpolation undershoots.
    """
    values = _measured(array.reshape(-1))
    lowest, highest = float(values.min()), float(values.max())
    sampled = values[:: max(1, values.size // SAMPLED_VOXELS) | 1]
    no_air = float(np.mean(sampled < BELOW_WATER_HU)) < BELOW_WATER_SHARE and not (lowest < 0 and _is_brain(sampled))
    if lowest >= 0 or (highest >= SOFT_TISSUE_HU and (no_air or _is_raised(sampled))):
        rule = "air is -1000"
        way_out = (
            f"where they are stored with an offset, prepare with --hu-offset -{OFFSET}" if highest > OFFSET else ""
        )
    elif highest < SOFT_TISSUE_HU:
        rule, way_out = f"tissue is above {SOFT_TISSUE_HU:g}", ""
    else:
        return
    raise UnusableVolume(
        f"CT is not in Hounsfield units: {rule}, but the values are {lowest:g} to {highest:g}; "
        f"{way_out or 'if they are all the same, set ct.require_hu=false'}"
    )


def in_hounsfield_units(array: Float32[ndarray, "depth height width"]) -> bool:
    """Tell whether air and soft tissue lie where Hounsfield units have them."""
    try:
        _check_hounsfield_units(array)
    except UnusableVolume:
        return False
    return True


def _measured(values: Float32[ndarray, " voxel"]) -> Float32[ndarray, " measured"]:
    """Return finite values without padding; all of them where nothing else would be left.

    Raises UnusableVolume where there are none.
    """
    finite: Float32[ndarray, " finite"] = values[np.isfinite(values)]
    if not finite.size:
        raise UnusableVolume("CT holds no image: no value is finite")
    measured = finite[finite >= LOWEST_HU]
    return measured if measured.size and measured.min() < measured.max() else finite


def _is_brain(values: Float32[ndarray, " voxel"]) -> bool:
    """Tell whether most voxels that are not of the most frequent value are of brain."""
    kinds, counts = np.unique(values, return_counts=True)
    shown = values[values != kinds[counts.argmax()]]
    if len(shown) > (1 - BACKGROUND_SHARE) * len(values) or not len(shown):
        return False
    return BRAIN_HU[0] <= float(np.median(shown)) <= BRAIN_HU[1]


def _is_raised(values: Float32[ndarray, " voxel"]) -> bool:
    """Tell whether soft tissue lies about 1024 too high, and next to nothing where Hounsfield units have air.

    A lowest value with nothing near it is padding, raised with all others.
    """
    above = values[values > values.min()]
    if above.size and above.min() - values.min() > PADDING_GAP_HU:
        values = above

    def share(low: float, high: float) -> float:
        return float(np.mean((values > low) & (values < high)))

    return share(LOWEST_HU, HIGHEST_AIR_HU) < 0.005 and share(*RAISED_HU) > max(0.02, share(*BETWEEN_HU))
