"""One file a kind of scan: how its stored values become channels in [0, 1]."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float32, Real
from numpy import ndarray


class UnusableVolume(ValueError):
    """A file cannot serve as a volume; the message is the short reason, without the path."""


@runtime_checkable
class Modality(Protocol):
    """Turns the values of a file into what a network sees."""

    channels: int

    def __call__(self, array: Real[ndarray, "..."], source: str) -> Float32[ndarray, "channel depth height width"]:
        """Return `array` (of file `source`) as channels in [0, 1]; raises UnusableVolume with the reason."""
        ...


def without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the axes of length 1 that NIfTI files carry behind the three of space."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
