"""The backends of sparse convolutions: what they promise, and which of them run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from voxelwave.errors import InputError
from voxelwave.sparse.dense import DenseBackend
from voxelwave.sparse.gather import GatherBackend
from voxelwave.sparse.minkowski import MinkowskiBackend
from voxelwave.sparse.volume import SparseVolume


@runtime_checkable
class SparseBackend(Protocol):
    """Computes convolutions on active sites; parameters stay with the modules, so that backends share checkpoints."""

    name: str

    def convolve(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 3 3 3"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Submanifold convolution of kernel 3, stride 1."""
        ...

    def downsample(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 2 2 2"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Convolution of kernel 2, stride 2, over max-pooled active sites."""
        ...


_BACKENDS: dict[str, Callable[[], SparseBackend]] = {
    "gather": GatherBackend,
    "minkowski": MinkowskiBackend,
    "dense": DenseBackend,
}
NAMES = tuple(_BACKENDS)


def make_backend(name: str) -> SparseBackend:
    """Return the backend called `name`; `auto`, where nothing can be measured, is gather, which runs everywhere.

    Raises InputError for another name, and for a backend that is not installed.
    """
    if name == "auto":
        name = "gather"
    if name not in _BACKENDS:
        raise InputError(f"unknown sparse backend '{name}': use auto, {', '.join(NAMES)}")
    return _BACKENDS[name]()


def why_not(name: str, device: torch.device) -> str | None:
    """Return why a backend cannot run on a device, with what to do about it, or None where it can."""
    try:
        backend = make_backend(name)
        if isinstance(backend, MinkowskiBackend):
            backend.check(device)
    except InputError as error:
        return str(error)
    return None
