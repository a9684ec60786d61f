"""Modalities, one in each file: how the values of a scan become channels in [0, 1]."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Real, Shaped
from numpy import ndarray

SHOWN = 0.1  # of [0, 1]: what is brighter in any channel is not air
HALF_MAX = 6e4

Bounds = tuple[float, float]


class Packed(NamedTuple):
    """Values to be stored, int16 or float16, and which of them become 0 and 1."""

    array: Shaped[ndarray, "..."]
    bounds: Bounds


@runtime_checkable
class Modality(Protocol):
    """Turns the values of a file into what a network sees: `bounds` looks at the whole volume, `scale` at any part."""

    channels: int
    lowest: ClassVar[float] = -np.inf  # what is below is padding, and raised to this

    def bounds(self, array: Real[ndarray, "..."]) -> Bounds:
        """Return the values that become 0 and 1; raises UnusableVolume where `array` is no image of this modality."""
        ...

    def scale(self, array: Real[ndarray, "..."], bounds: Bounds) -> Float32[ndarray, "channel depth height width"]:
        """Return `array`, a volume or a part of one, as channels in [0, 1]; what is not a number becomes 0."""
        ...

    def __call__(self, array: Real[ndarray, "..."]) -> Float32[ndarray, "channel depth height width"]:
        """Return a whole volume as channels in [0, 1]; raises UnusableVolume with the reason."""
        return self.scale(array, self.bounds(array))

    def foreground(self, array: Real[ndarray, "..."], bounds: Bounds) -> Bool[ndarray, "depth height width"]:
        """Tell which voxels are not air."""
        return np.asarray(self.scale(array, bounds).max(axis=0) > SHOWN)

    def pack(self, array: Float32[ndarray, "..."], bounds: Bounds) -> Packed:
        """Return a whole volume as it is stored: whole numbers as they are, others scaled, to 0.00025 of [0, 1]."""
        limits = np.iinfo(np.int16)
        if limits.min <= array.min() and array.max() <= limits.max and _whole(array):
            return Packed(array.astype(np.int16), bounds)
        low, high = bounds
        scaled = (array - np.float32(low)) / np.float32(high - low)
        return Packed(np.clip(scaled, -HALF_MAX, HALF_MAX).astype(np.float16), (0.0, 1.0))

    def baked(self) -> dict[str, Any]:
        """Return the settings that stored bounds depend on: a volume that was stored with others is not read."""
        return {}


def _whole(array: Float32[ndarray, "..."]) -> bool:
    # Plane by plane: most volumes show in their first plane that they are not.
    return all(np.array_equal(plane, np.rint(plane)) for plane in array)
