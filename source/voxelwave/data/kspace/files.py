"""One file of k-space, whatever its format: what it holds is read once, its slices when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex, Complex64, Float32
from torch import Tensor

from voxelwave.data.kspace.hdf5 import MOST_VALUES, opened
from voxelwave.data.kspace.info import KspaceInfo, KspaceSource
from voxelwave.data.kspace.layouts import MAPS, ArraySource
from voxelwave.data.kspace.mrd.source import MrdSource, is_mrd
from voxelwave.data.kspace.twix import TwixSource, is_twix
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.ops.loggers import logger
from voxelwave.physics.prewhitening import noise_covariance

KSPACE_FOLDER, IMAGE_FOLDER = "kspace", "image"


def _holds_acquisitions(path: Path) -> bool:
    with opened(path) as file:
        return is_mrd(file)


class KspaceFile:
    """A volume of k-space of fastMRI, of the challenge's layout, of ISMRMRD or of Siemens; `info` says what it holds.

    The file is open only while something of it is read, so that the object can be sent to other processes, and any
    number of files takes no more memory than what was read. Rows of k-space, the height, lie along the read-out, and
    its origin is at `(height // 2, width // 2)`.

    Args:
        path: the file.
        images: the file with the targets, where that is another one. By default that of the same name in the folder
            `image` beside the folder `kspace` that the file lies in.
        most_values: complex values that one slice may have over all coils; what claims more is refused.

    Raises InputError, one line that names the file, for whatever cannot be used.
    """

    def __init__(self, path: Path, images: Path | None = None, *, most_values: int = MOST_VALUES) -> None:
        self.path = path
        if images is None and path.parent.name == KSPACE_FOLDER:
            beside = path.parent.parent / IMAGE_FOLDER / path.name
            images = beside if beside.is_file() else None
        with self._named():
            self._source: KspaceSource
            if is_twix(path):
                self._source = TwixSource(path, most_values=most_values)
            elif _holds_acquisitions(path):
                self._source = MrdSource(path, most_values=most_values)
            else:
                self._source = ArraySource(path, images, most_values=most_values)
        for note in self.info.notes:
            logger.warning("note: %s: %s", path, note)
        self._peak_was_looked_at = False

    @property
    def info(self) -> KspaceInfo:
        """What the file holds."""
        return self._source.info

    def __len__(self) -> int:
        return self.info.num_slices

    def slice(self, index: int, *, neighbours: int = 0) -> Complex64[Tensor, "slice coil height width"]:
        """Return the k-space of slice `index` between that many `neighbours` on each side.

        Beyond the ends of the volume its last slice stands for those that are missing.
        Raises IndexError for a slice that is not there, InputError for values that are not finite or all 0.
        """
        self._check(index)
        wanted = np.clip(np.arange(index - neighbours, index + neighbours + 1), 0, len(self) - 1)
        start, stop = int(wanted[0]), int(wanted[-1]) + 1
        with self._named(f"slices {start} to {stop - 1}: " if neighbours else f"slice {index}: "):
            kspace = torch.from_numpy(self._source.read(start, stop))
            # A sum is finite where its terms are, and is several times as fast as to look at each.
            parts = torch.view_as_real(kspace)
            if not (bool(parts.sum().isfinite()) or bool(parts.isfinite().all())):
                raise UnusableVolume("its k-space holds NaN or infinite values, which a transform would spread")
            if not bool(kspace[index - start].any()):
                raise UnusableVolume("its k-space is all 0")
        self._look_at_peak(kspace, start)
        return kspace if len(kspace) == len(wanted) else kspace[torch.from_numpy(wanted - start)]

    def target(self, index: int) -> Float32[Tensor, "rows columns"] | None:
        """Return the image to be reconstructed of one slice, None where the file has none."""
        return self.image(self.info.target, index) if self.info.has_target else None

    def image(self, name: str, index: int) -> Float32[Tensor, "rows columns"]:
        """Return one slice of the images called `name`, such as the challenge's `image_grappa`."""
        self._check(index)
        with self._named(f"'{name}', slice {index}: "):
            values = self._source.image(name, index)
            if values.ndim != 2 or values.dtype.kind not in "fiu":
                raise UnusableVolume(f"real images are needed, got {values.dtype} of {values.ndim} axes")
            image = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
            if not bool(image.isfinite().all()):
                raise UnusableVolume("holds NaN or infinite values")
        return image

    def maps(self, index: int) -> Complex64[Tensor, "coil height width"]:
        """Return the sensitivity maps of one slice that the file holds; raises InputError where it holds none."""
        self._check(index)
        with self._named():
            if not self.info.has_maps:
                raise UnusableVolume(f"has no '{MAPS}'")
            return torch.from_numpy(np.ascontiguousarray(self._source.image(MAPS, index), dtype=np.complex64))

    def noise(self) -> Complex[Tensor, "coil sample"]:
        """Return what the noise scan measured, for `physics.prewhitening`; raises InputError where there is none."""
        with self._named():
            return torch.from_numpy(self._source.noise())

    @cached_property
    def noise_covariance(self) -> Complex[Tensor, "coil coil"]:
        """That of the noise scan, for all slices; raises InputError as `noise` does, ValueError for too few samples."""
        return noise_covariance(self.noise())

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has slices 0 to {len(self) - 1}, got {index}")

    @contextmanager
    def _named(self, place: str = "") -> Iterator[None]:
        try:
            yield
        except UnusableVolume as error:
            raise InputError(f"{self.path}: {place}{error}") from error

    def _look_at_peak(self, kspace: Complex64[Tensor, "slice coil height width"], start: int) -> None:
        """Warn, once, where the strongest value of the middle slice is not at the origin; nothing is shifted.

        A centre that is off by one is common, and a linear phase over the image by itself does not harm; but a network
        takes its calibration lines from around the origin.
        """
        middle = len(self) // 2
        if self._peak_was_looked_at or not start <= middle < start + len(kspace):
            return
        self._peak_was_looked_at = True
        height, width = self.info.size
        energy = torch.view_as_real(kspace[middle - start]).square().sum((0, 3))
        row, column = divmod(int(energy.argmax()), width)
        if (row, column) != (height // 2, width // 2):
            logger.warning(
                "%s: its k-space is strongest at (%d, %d), and its origin is (%d, %d): its centre may be off; it is "
                "used as it is",
                *(self.path, row, column, height // 2, width // 2),
            )
