"""The networks of the study of reconstructions, ours and other people's, and the classical methods with their grids.

fastMRI's networks need the package fastmri (0.3.0, MIT), MoDL needs deepinv (0.5.0, BSD-3-Clause) with a torchvision:

    pip install --no-deps --target FOLDER fastmri==0.3.0 pandas python-dateutil six
    pip install --no-deps --target FOLDER deepinv==0.5.0 natsort einops requests urllib3 idna certifi \
        charset-normalizer torchmetrics

and FOLDER in PYTHONPATH. None of it is needed for the other arms.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from itertools import product
from unittest import mock

import torch
from torch import Tensor, nn

from semi_synthetic import NUM_CENTER
from voxelwave.contracts import Reconstruction
from voxelwave.physics.acquisition import expand, root_sum_of_squares, sample
from voxelwave.physics.fourier import ifft2c
from voxelwave.unrolled.classical import EspiritMaps, L1Wavelet
from voxelwave.unrolled.image_unet import ImageUnet
from voxelwave.unrolled.prompt_unet import Level, UnetShape
from voxelwave.unrolled.promptmr_plus import PromptMRPlus, VariationalNetwork
from voxelwave.unrolled.sense import Sense
from voxelwave.unrolled.sensitivity import MapEstimate, SensitivityShape, low_resolution_maps
from voxelwave.unrolled.zero_filled import zero_filled

OURS, UNET, VARIATIONAL = "PromptMR+", "U-Net of equal size", "variational network, same blocks"
FASTMRI_UNET, FASTMRI_VARNET, MODL = "fastMRI U-Net", "fastMRI VarNet", "deepinv MoDL"
ZERO_FILLED, SENSE, L1_WAVELET = "zero-filled", "SENSE", "L1-wavelet"
CLASSICAL = (ZERO_FILLED, SENSE, L1_WAVELET)
LIBRARIES = {FASTMRI_UNET: "fastmri", FASTMRI_VARNET: "fastmri", MODL: "deepinv"}

CASCADES = 6
OUR_STEPS = 1380  # of PromptMR+: what five CPU-minutes were for its first seeds
UNET_SHAPE = UnetShape(first_channels=12, levels=(Level(16, 6, 32, 1, 1), Level(24, 10, 16, 1, 1)))
MAPS_SHAPE = SensitivityShape(
    unet=UnetShape(first_channels=4, levels=(Level(6, 2, 32, 1, 1), Level(8, 4, 16, 1, 1))), per_coil=False
)


def prompt_mr() -> nn.Module:
    """Return the small PromptMR+ of one slice."""
    return PromptMRPlus(num_cascades=CASCADES, num_slices=1, unet=UNET_SHAPE, sensitivity=MAPS_SHAPE)


def variational() -> nn.Module:
    """Return the same without prompts and buffers."""
    return VariationalNetwork(num_cascades=CASCADES, num_slices=1, unet=UNET_SHAPE, sensitivity=MAPS_SHAPE)


def equal_unet() -> nn.Module:
    """Return the U-Net whose number of parameters is nearest to that of `prompt_mr`, its frozen prompts counted."""
    wanted = size(prompt_mr())
    made = (ImageUnet(num_slices=1, channels=channels, depth=depth) for channels in range(4, 48) for depth in (2, 3, 4))
    return min(made, key=lambda network: abs(size(network) - wanted))


def size(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


class FastMRIUnet(nn.Module):
    """fastMRI's U-Net of the zero-filled image, normalised and cut off as its data transform does."""

    def __init__(self) -> None:
        super().__init__()
        from fastmri.models import Unet

        self.network = Unet(1, 1, chans=32, num_pool_layers=4)

    def forward(self, kspace: Tensor, sampled: Tensor, num_low_frequencies: int) -> Tensor:
        """Return the image."""
        image = zero_filled(kspace, sampled)
        std, mean = torch.std_mean(image, (1, 2), keepdim=True)
        seen = ((image - mean) / (std + 1e-11)).clamp(-6, 6)
        said: Tensor = self.network(seen[:, None])[:, 0]
        return said * std + mean


class FastMRIVarNet(nn.Module):
    """fastMRI's end-to-end variational network."""

    def __init__(self, *, cascades: int = CASCADES, channels: int = 8, maps_channels: int = 4, pools: int = 3) -> None:
        super().__init__()
        from fastmri.models import VarNet

        self.network = VarNet(cascades, maps_channels, pools, channels, pools)

    def forward(self, kspace: Tensor, sampled: Tensor, num_low_frequencies: int) -> Tensor:
        """Return the image."""
        measured = torch.view_as_real(sample(kspace[:, 0], sampled[:, None].expand(-1, kspace.shape[-2], -1)))
        image: Tensor = self.network(measured, sampled[:, None, None, :, None], num_low_frequencies)
        return image


class Modl(nn.Module):
    """deepinv's MoDL with its defaults, between maps of low resolution, in units of the zero-filled image."""

    def __init__(self) -> None:
        super().__init__()
        # torchvision, which deepinv imports, may be built for another torch. Its operators are not used here.
        with mock.patch("torch.library.register_fake", return_value=lambda function: function):
            import torchvision  # noqa: F401
        from deepinv.models import MoDL
        from deepinv.physics import MultiCoilMRI

        self.network, self.physics = MoDL(), MultiCoilMRI

    def forward(self, kspace: Tensor, sampled: Tensor, num_low_frequencies: int) -> Tensor:
        """Return the image."""
        measured = sample(kspace[:, 0], sampled[:, None].expand(-1, kspace.shape[-2], -1))
        maps = low_resolution_maps(measured, sampled, num_low_frequencies)
        unit = root_sum_of_squares(ifft2c(measured)).amax((1, 2))[:, None, None]
        places = sampled[:, None].expand(-1, kspace.shape[-2], -1).float()
        seen = torch.view_as_real(measured / unit[:, None]).movedim(-1, 1)
        said = self.network(seen, self.physics(mask=places[:, None], coil_maps=maps))
        image = torch.view_as_complex(said.movedim(1, -1).contiguous())
        return root_sum_of_squares(expand(image, maps)) * unit


# In the order in which cells are filled: what is asked first, then the strongest of the others.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    OURS: prompt_mr,
    UNET: equal_unet,
    FASTMRI_VARNET: FastMRIVarNet,
    VARIATIONAL: variational,
    MODL: Modl,
    FASTMRI_UNET: FastMRIUnet,
}


def missing_library(arm: str) -> str | None:
    """Return the library that an arm needs and that is not installed, or None."""
    library = LIBRARIES.get(arm)
    return library if library and importlib.util.find_spec(library) is None else None


# --- classical -------------------------------------------------------------------------------------------------------
# The centre has 10 lines, and a kernel of 6 needs 12. Cropped, ESPIRiT's maps leave out the noise of the air, which is
# part of the target: SENSE then has a lower SSIM on the validation images.
MAPS: dict[str, MapEstimate] = {
    "low resolution": low_resolution_maps,
    "ESPIRiT, not cropped": EspiritMaps(kernel_width=5, crop=0.0),
}
SENSE_GRID = {"iterations": (5, 10, 20, 40), "regularisation": (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}
L1_GRID = {"iterations": (100,), "regularisation": (1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)}
Setting = dict[str, float | int | str]


def settings(method: str, maps: Sequence[str] = tuple(MAPS)) -> list[Setting]:
    """Return all settings of a classical method."""
    if method == ZERO_FILLED:
        return [{}]
    grid = SENSE_GRID if method == SENSE else L1_GRID
    return [dict(zip(("maps", *grid), values, strict=True)) for values in product(maps, *grid.values())]


def classical(method: str, setting: Setting, maps: Tensor) -> Reconstruction:
    """Return a classical method with one setting and maps that are computed already."""
    if method == ZERO_FILLED:
        return zero_filled
    make = Sense if method == SENSE else L1Wavelet
    return make(
        regularisation=float(setting["regularisation"]),
        iterations=int(setting["iterations"]),
        maps=lambda *_: maps,
    )


def estimated_maps(name: str, kspace: Tensor, sampled: Tensor) -> Tensor:
    """Return the maps of `kspace`."""
    return MAPS[name](kspace[:, 0], sampled, NUM_CENTER)
