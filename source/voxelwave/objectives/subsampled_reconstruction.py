"""Reconstruction of whole images from some of their frequencies, for a network and the mask ahead of it."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from voxelwave.contracts import StepOutput
from voxelwave.physics.fourier import as_complex
from voxelwave.unrolled.subsampling import image_of

Kspace = Complex[Tensor, "image height width"]


class SubsampledReconstruction(nn.Module):
    """The squared error of complex images in units of the largest value of each: the quantity that a PSNR is made of.

    `model` calls a `Subsampling` layer on whole k-space first, and returns real and imaginary parts
    `[image, 2, height, width]`. Its error does not depend on the unit of the data.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, kspace: Kspace) -> StepOutput:
        """Return the mean error of the images, and the PSNR of their magnitudes."""
        target, image = image_of(kspace), self.image(kspace)
        peak = target.abs().amax((-2, -1))
        loss = ((image - target).abs().square().mean((-2, -1)) / peak.square()).mean()
        with torch.no_grad():
            error = (image.abs() - target.abs()).square().mean((-2, -1)) / peak.square()
            # An image that is reproduced exactly has no finite PSNR, and one in single precision none above this.
            psnr = -10 * error.clamp_min(torch.finfo(error.dtype).eps ** 2).log10().mean()
        return StepOutput(loss, {"loss": loss.detach(), "psnr_db": psnr})

    def image(self, kspace: Kspace) -> Complex[Tensor, "image height width"]:
        """Return the complex images that the model makes."""
        channels: Float[Tensor, "image 2 height width"] = self.model(kspace)
        return as_complex(channels.movedim(1, -1).contiguous())
