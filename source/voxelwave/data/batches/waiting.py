"""How long a training crop is waited for: read whole from its file, and from the store."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from voxelwave.data.batches.cuboids import Cuboids, InMemory, InStore
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.reading.volume import Spacing
from voxelwave.data.store import SUFFIX, StoredInfo, StoredVolume, write_stored
from voxelwave.ops.seeding import torch_generator

REPEATS = 3


def crop_times(
    path: Path,
    modality: Modality,
    view: Callable[[Cuboids, torch.Generator], Tensor],
    *,
    spacing_mm: Spacing | None = None,
) -> tuple[float, float]:
    """Return the seconds that a view of `path` takes, read whole and read from a store made of it.

    Raises UnusableVolume for a file that cannot be used, OSError where there is no room for a temporary store.
    """
    started = time.perf_counter()
    volume = read_volume(path, channels=modality.channels, spacing_mm=spacing_mm)
    bounds = modality.bounds(volume.array)
    view(InMemory(torch.from_numpy(modality.scale(volume.array, bounds))), torch_generator(0))
    whole_s = time.perf_counter() - started
    packed = modality.pack(volume.array, bounds)
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder, f"volume{SUFFIX}")
        info = StoredInfo(modality="", affine=volume.affine.tolist(), bounds=packed.bounds)
        write_stored(stored, packed.array, info)
        times = []
        for number in range(REPEATS):
            started = time.perf_counter()
            view(InStore(StoredVolume(stored), modality), torch_generator(number))
            times.append(time.perf_counter() - started)
    return whole_s, min(times)
