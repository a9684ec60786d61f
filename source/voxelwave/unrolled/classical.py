"""Reconstructions and maps of other people's libraries, slice by slice on the CPU: the extra `classical`."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from voxelwave.contracts import NumLines
from voxelwave.errors import InputError
from voxelwave.physics.acquisition import expand, root_sum_of_squares, sample
from voxelwave.physics.fourier import ifft2c
from voxelwave.physics.sampled_lines import center_lines, sampled_places
from voxelwave.unrolled.sensitivity import MapEstimate
from voxelwave.unrolled.zero_filled import Volumes

# ESPIRiT's calibration region, at most.
CALIBRATION_LINES = 24
SMALLEST_KERNEL = 3


def library(name: str, purpose: str) -> ModuleType:
    """Return the imported library; raises InputError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{purpose} needs {name.partition('.')[0]}: pip install 'voxelwave[classical]'") from error


class EspiritMaps:
    """Estimates maps by ESPIRiT; a `MapEstimate`.

    The kernel is smaller where the centre is narrower than two of `kernel_width`. With `crop`, maps are 0 where the
    largest eigenvalue is below it, as in the air: that leaves out its noise, which the target of a study mostly has.
    Raises InputError where sigpy is not installed. Source: Uecker et al., ESPIRiT, 2014.
    """

    def __init__(self, *, kernel_width: int = 6, threshold: float = 0.02, crop: float = 0.0) -> None:
        self._app = library("sigpy.mri.app", "ESPIRiT")
        self.kernel_width, self.threshold, self.crop = kernel_width, threshold, crop

    def __call__(
        self,
        kspace: Complex[Tensor, "batch coil height width"],
        sampled: Bool[Tensor, "batch ... width"],
        num_low_frequencies: NumLines = None,
    ) -> Complex[Tensor, "batch coil height width"]:
        """Return the maps of each sample.

        Raises ValueError where the centre is narrower than two of the smallest kernels, and as `center_lines` does.
        """
        counts = center_lines(sampled, num_low_frequencies).sum(-1).clamp_max(min(CALIBRATION_LINES, kspace.shape[-2]))
        # Fewer shifts of the kernel than its width tell next to nothing of what they have in common.
        if int(counts.min()) < 2 * SMALLEST_KERNEL:
            raise ValueError(
                f"ESPIRiT needs a centre of {2 * SMALLEST_KERNEL} lines or more, got {int(counts.min())}: reconstruct "
                "by SENSE, whose maps need no such centre"
            )
        measured = sample(kspace, sampled_places(sampled, kspace.shape[-2]))
        maps = [self._of_one(values, count) for values, count in zip(measured, counts.tolist(), strict=True)]
        return torch.stack(maps).to(kspace)

    def _of_one(self, kspace: Tensor, count: int) -> Tensor:
        if not kspace.any():
            return torch.zeros_like(kspace, device="cpu")
        estimate = self._app.EspiritCalib(
            kspace.cpu().numpy(),
            calib_width=count,
            kernel_width=min(self.kernel_width, count // 2),
            thresh=self.threshold,
            crop=self.crop,
            show_pbar=False,
        )
        # The phase is taken from the first coil, which may be exactly 0 somewhere.
        with np.errstate(divide="ignore", invalid="ignore"):
            return torch.from_numpy(np.nan_to_num(estimate.run()))


class L1Wavelet:
    """Compressed sensing: the image that agrees with the samples and has few wavelets; a `Reconstruction`.

    `regularisation` weighs the wavelets' magnitudes, in units of the largest value of the zero-filled image. `maps`
    are ESPIRiT's unless given.
    Raises InputError where sigpy is not installed, ValueError for settings out of range.
    Source: Lustig et al., Sparse MRI, 2007.
    """

    def __init__(self, *, regularisation: float = 1e-3, iterations: int = 100, maps: MapEstimate | None = None) -> None:
        self._app = library("sigpy.mri.app", "L1-wavelet reconstruction")
        if regularisation < 0 or iterations < 1:
            raise ValueError(
                f"regularisation must be at least 0 and iterations at least 1, got {regularisation} and {iterations}"
            )
        self.regularisation, self.iterations, self.maps = regularisation, iterations, maps or EspiritMaps()

    @torch.no_grad()
    def __call__(
        self, kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
    ) -> Float[Tensor, "batch height width"]:
        """Return the magnitude of the centre slice, as all coils together show it."""
        places = sampled_places(sampled, kspace.shape[-2])
        measured = sample(kspace[:, kspace.shape[1] // 2], places)
        maps = self.maps(measured, sampled, num_low_frequencies)
        images = [self._of_one(*one) for one in zip(measured, maps, places, strict=True)]
        return root_sum_of_squares(expand(torch.stack(images).to(kspace), maps))

    def _of_one(self, kspace: Tensor, maps: Tensor, sampled: Tensor) -> Tensor:
        if not maps.any():
            return torch.zeros_like(maps[0], device="cpu")
        unit = root_sum_of_squares(ifft2c(kspace)).max()
        reconstruction = self._app.L1WaveletRecon(
            (kspace / unit).cpu().numpy(),
            maps.cpu().numpy(),
            self.regularisation,
            weights=sampled.cpu().numpy().astype(np.float32),
            max_iter=self.iterations,
            # A step that no maps of this length make too long. The library would guess one from random numbers.
            alpha=1 / float(root_sum_of_squares(maps).max()) ** 2,
            show_pbar=False,
        )
        return torch.from_numpy(reconstruction.run()) * unit.cpu()


class Grappa:
    """Fills each gap of k-space from its neighbours of all coils; a `Reconstruction`.

    Its kernel covers `kernel_height` places along a line, and across lines what it takes to see one on either side of
    every gap. The weights are fitted on the centre lines.
    Raises InputError where pygrappa is not installed. Source: Griswold et al., GRAPPA, 2002.
    """

    def __init__(self, *, kernel_height: int = 5, regularisation: float = 0.01) -> None:
        self._library = library("pygrappa", "GRAPPA")
        self.kernel_height, self.regularisation = kernel_height, regularisation

    @torch.no_grad()
    def __call__(
        self, kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
    ) -> Float[Tensor, "batch height width"]:
        """Return the root of the sum of squares over the coils of the centre slice.

        Raises ValueError where the centre is narrower than the kernel, and as `center_lines` does.
        """
        places = sampled_places(sampled, kspace.shape[-2])
        measured = sample(kspace[:, kspace.shape[1] // 2], places)
        center = center_lines(sampled, num_low_frequencies)
        filled = [self._of_one(*one) for one in zip(measured, places, center, strict=True)]
        return root_sum_of_squares(ifft2c(torch.stack(filled).to(kspace)))

    def _of_one(self, kspace: Tensor, sampled: Tensor, center: Tensor) -> Tensor:
        gap = int(sampled[len(sampled) // 2].nonzero()[:, 0].diff().max())
        if gap == 1:
            return kspace.cpu()
        if int(center.sum()) < 2 * gap - 1:
            raise ValueError(
                f"lines that are {gap} apart need a GRAPPA kernel of {2 * gap - 1} lines, and the centre has "
                f"{int(center.sum())}: lower the acceleration, or sample a larger centre"
            )
        values = kspace.cpu().numpy()
        # Where not even the kernel sees a line, at the edge, the library divides by the 0 that it saw, and fills 0 in.
        with np.errstate(invalid="ignore"):
            filled = self._library.mdgrappa(
                values,
                np.ascontiguousarray(values[..., center.cpu().numpy()]),
                kernel_size=(self.kernel_height, 2 * gap - 1),
                coil_axis=0,
                lamda=self.regularisation,
            )
        return torch.from_numpy(np.ascontiguousarray(filled))
