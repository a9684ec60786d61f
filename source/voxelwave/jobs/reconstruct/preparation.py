"""What is done to the k-space of every slice before a network or a classical method sees it, in training and later."""

from __future__ import annotations

from jaxtyping import Bool, Complex64
from torch import Tensor

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.slices import DataRange
from voxelwave.errors import InputError
from voxelwave.jobs.reconstruct.config import CoilsConfig
from voxelwave.losses.structural_similarity import WINDOW
from voxelwave.physics.coil_compression import (
    compress,
    compress_geometrically,
    compression_matrix,
    geometric_matrices,
)
from voxelwave.physics.fourier import crop_readout
from voxelwave.physics.prewhitening import whiten
from voxelwave.physics.sampled_lines import center_lines, lines_of, num_center_lines


class Preparation:
    """Whitens and compresses coils, and crops the read-out, as `coils` and `readout_rows` say; both may be off.

    The crop commutes with the choice of lines, and changes no image but for its edges. It keeps one row more where it
    takes that to leave as many rows out above as below: the middle of the rest is that of the whole.
    """

    def __init__(self, *, coils: CoilsConfig, readout_rows: int | None) -> None:
        self.coils, self.readout_rows = coils, readout_rows

    def __call__(
        self,
        kspace: Complex64[Tensor, "slice coil height width"],
        sampled: Bool[Tensor, "height width"],
        file: KspaceFile,
        *,
        least_rows: int = 0,
    ) -> tuple[Complex64[Tensor, "slice virtual rows width"], Bool[Tensor, "rows width"]]:
        """Return what is left of undersampled k-space, of `least_rows` or more, and where it is sampled.

        Raises InputError where nothing is sampled around the origin that maps could be made of, where the file has no
        noise scan and one is needed, and where single places are sampled of a read-out that is to be cropped.
        """
        rows = self.readout_rows
        if not int(num_center_lines(sampled[sampled.shape[0] // 2])):
            width = sampled.shape[1]
            raise InputError(
                f"{file.path}: no calibration centre: columns {width // 2 - 1} and {width // 2} are not both sampled, "
                "and no maps can be made of the others; is its centre fraction too small?"
            )
        if rows is not None:
            rows = max(rows, least_rows)
            rows += (kspace.shape[-2] - rows) % 2
        try:
            if self.coils.prewhiten:
                ratio = file.info.dwell_time_ratio or 1.0
                kspace = whiten(kspace, file.noise_covariance, dwell_time_ratio=ratio)
            if rows is not None and rows < kspace.shape[-2]:
                kspace, sampled = crop_readout(kspace, rows), lines_of(sampled).repeat(rows, 1)
            if (num_virtual := self.coils.num_virtual) is not None and num_virtual < kspace.shape[-3]:
                kspace = self._compressed(kspace, sampled, num_virtual)
        except InputError:
            raise  # it names the file
        except ValueError as error:
            raise InputError(f"{file.path}: {error}") from None
        return kspace, sampled

    def _compressed(self, kspace: Tensor, sampled: Tensor, num_virtual: int) -> Tensor:
        center = kspace[len(kspace) // 2]
        calibration = center[..., center_lines(sampled[None, sampled.shape[0] // 2])[0]]
        if self.coils.compression == "svd":
            return compress(kspace, compression_matrix(calibration, num_virtual=num_virtual))
        lines_of(sampled)
        return compress_geometrically(kspace, geometric_matrices(calibration, num_virtual=num_virtual))


def check_target(file: KspaceFile, *, readout_rows: int | None, needed: bool, data_range: DataRange) -> None:
    """Raise InputError where an image to learn from is `needed` and missing, or cannot be used as it is."""
    size = file.info.target_size
    if size is None and needed:
        raise InputError(
            f"{file.path}: has no target to learn from or to validate with; leave it out, or set "
            "training.objective.name to self_supervised"
        )
    if size is not None and min(size) < WINDOW:
        raise InputError(
            f"{file.path}: its target is {size[0]}×{size[1]}, and a similarity needs {WINDOW} pixels a side"
        )
    if size is not None and data_range == "attribute" and file.info.data_range is None:
        raise InputError(f"{file.path}: has no attribute 'max' for the data range: take data.data_range=volume")
    if size is not None and readout_rows is not None and readout_rows < min(size[0], file.info.size[0]):
        raise InputError(
            f"{file.path}: its target has {size[0]} rows, and data.readout_rows is {readout_rows}: raise it, or take "
            "null"
        )
