"""What is done to the k-space of every slice before a network or a classical method sees it, in training and later."""

from __future__ import annotations

from jaxtyping import Bool, Complex64
from torch import Tensor

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.errors import InputError
from voxelwave.jobs.reconstruct.config import CoilsConfig
from voxelwave.physics.coil_compression import (
    compress,
    compress_geometrically,
    compression_matrix,
    geometric_matrices,
)
from voxelwave.physics.fourier import crop_readout
from voxelwave.physics.prewhitening import noise_covariance, whiten
from voxelwave.physics.sampled_lines import center_lines, lines_of


class Preparation:
    """Whitens and compresses coils, and crops the read-out, as `coils` and `readout_rows` say; both may be off.

    The crop commutes with the choice of lines, and changes no image but for its edges.
    """

    def __init__(self, *, coils: CoilsConfig, readout_rows: int | None) -> None:
        self.coils, self.readout_rows = coils, readout_rows

    def __call__(
        self,
        kspace: Complex64[Tensor, "slice coil height width"],
        sampled: Bool[Tensor, "height width"],
        file: KspaceFile,
    ) -> tuple[Complex64[Tensor, "slice virtual rows width"], Bool[Tensor, "rows width"]]:
        """Return what is left of undersampled k-space, and where it is sampled.

        Raises InputError where the file has no noise scan and one is needed, and where single places are sampled of a
        read-out that is to be cropped.
        """
        rows = self.readout_rows
        try:
            if self.coils.prewhiten:
                ratio = file.info.dwell_time_ratio or 1.0
                kspace = whiten(kspace, noise_covariance(file.noise()), dwell_time_ratio=ratio)
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


def check_target_fits(file: KspaceFile, readout_rows: int | None) -> None:
    """Raise InputError where the image to be reconstructed has more rows than are left of the read-out."""
    size = file.info.target_size
    if size is not None and readout_rows is not None and readout_rows < min(size[0], file.info.size[0]):
        raise InputError(
            f"{file.path}: its target has {size[0]} rows, and data.readout_rows is {readout_rows}: raise it, or take "
            "null"
        )
