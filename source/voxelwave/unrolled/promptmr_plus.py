"""PromptMR+: gradient descent on the samples, with a U-Net for what they do not say, unrolled into a network.

An independent implementation after Xin et al., Rethinking deep unrolled model for accelerated MRI reconstruction, 2024.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from voxelwave.contracts import NumLines
from voxelwave.physics.acquisition import combine, expand, root_sum_of_squares
from voxelwave.registry import RECONSTRUCTIONS
from voxelwave.unrolled.normal_operator import NormalOperator
from voxelwave.unrolled.normalising import as_channels, as_groups, normalised
from voxelwave.unrolled.prompt_unet import Made, PromptUnet, UnetShape
from voxelwave.unrolled.sensitivity import SensitivityNetwork, SensitivityShape
from voxelwave.unrolled.zero_filled import Volumes, coil_groups, zero_filled_coils

Images = Complex[Tensor, "batch slice height width"]

# Beside latent images, the buffer holds Aᴴ M A x, x0, and their difference.
BUFFERS_WITHOUT_LATENT = 3
MOST_CASCADES = 100  # several times as many as anyone has trained; each has weights for itself


def num_latent(num_buffers: int) -> int:
    """Return how many of the buffer's images are latent."""
    return max(0, num_buffers - BUFFERS_WITHOUT_LATENT)


class Cascade(nn.Module):
    """One step: towards the samples by a learned weight, and away from what the U-Net says is no anatomy.

    The U-Net sees the image and `num_buffers` others of its size: what the samples show of it, `num_buffers` - 3
    latent ones that cascades hand on, the first image, and how the second differs from it. With a `num_buffers` of 0
    it sees the image alone.
    """

    def __init__(self, num_slices: int, *, unet: UnetShape, num_buffers: int, num_history: int) -> None:
        super().__init__()
        self.num_buffers = num_buffers
        self.num_latent = num_latent(num_buffers)
        channels = 2 * num_slices * (1 + num_buffers)
        self.unet = PromptUnet(channels, channels, shape=unet, num_history=num_history)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(
        self, image: Images, latent: list[Images], first: Images, acquisition: NormalOperator, history: list[Made]
    ) -> tuple[Images, list[Images], Made]:
        """Return the next image and latent images, and what each level of the U-Net made."""
        seen = acquisition(image)
        residual = seen - first
        buffer = [seen, *latent, first, residual] if self.num_buffers else []
        # 1. The U-Net says as many images as it sees. All but the model term and the latent ones are dropped.
        channels, undo = normalised(as_channels(torch.cat([image, *buffer], 1)), multiple=self.unet.multiple)
        output, made = self.unet(channels, history)
        model_term, *said = as_groups(undo(output)).split(image.shape[1], dim=1)
        # 2. One step of gradient descent.
        return image - self.weight * residual - model_term, said[1 : 1 + self.num_latent], made


@RECONSTRUCTIONS.register("promptmr_plus")
class PromptMRPlus(nn.Module):
    """The network of the fastMRI recipe; a `Reconstruction`.

    Args:
        num_cascades: steps, each with weights for itself.
        num_slices: adjacent slices that are seen together; the centre one is the result.
        unet: of every cascade.
        sensitivity: the network that estimates the maps.
        num_buffers: images that a cascade's U-Net sees beside its own, 0 or at least 3 (see `Cascade`).
        num_history: of how many cascades before it a U-Net recalls what its decoder made.
        checkpointing: computes each cascade again for its gradient: slower, in less memory.

    Raises ValueError for numbers out of range.
    """

    def __init__(
        self,
        *,
        num_cascades: int = 8,
        num_slices: int = 3,
        unet: UnetShape = UnetShape(),
        sensitivity: SensitivityShape = SensitivityShape(),
        num_buffers: int = 4,
        num_history: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= num_cascades <= MOST_CASCADES or num_slices < 1 or num_slices % 2 == 0:
            raise ValueError(
                f"num_cascades must be 1 to {MOST_CASCADES} and num_slices odd, got {num_cascades} and {num_slices}"
            )
        if num_buffers != 0 and num_buffers < BUFFERS_WITHOUT_LATENT:
            raise ValueError(f"num_buffers must be 0 or at least {BUFFERS_WITHOUT_LATENT}, got {num_buffers}")
        if num_history < 0:
            raise ValueError(f"num_history must be at least 0, got {num_history}")
        self.num_slices, self.num_history, self.checkpointing = num_slices, num_history, checkpointing
        self.sensitivity = SensitivityNetwork(num_slices=num_slices, shape=sensitivity)
        self.num_latent = num_latent(num_buffers)
        # The first cascades have fewer before them.
        self.cascades = nn.ModuleList(
            Cascade(num_slices, unet=unet, num_buffers=num_buffers, num_history=min(index, num_history))
            for index in range(num_cascades)
        )

    @property
    def coils_at_once(self) -> int | None:
        """Of how many coils images and transforms are in memory at a time; None, the default, for all."""
        return self.sensitivity.coils_at_once

    @coils_at_once.setter
    def coils_at_once(self, number: int | None) -> None:
        self.sensitivity.coils_at_once = number

    def forward(
        self, kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
    ) -> Float[Tensor, "batch height width"]:
        """Return the magnitude of the centre slice; raises as `coil_images` does."""
        return root_sum_of_squares(self.coil_images(kspace, sampled, num_low_frequencies))

    def coil_images(
        self, kspace: Volumes, sampled: Bool[Tensor, "batch ... width"], num_low_frequencies: NumLines = None
    ) -> Complex[Tensor, "batch coil height width"]:
        """Return the centre slice as each coil sees it.

        Raises ValueError for another number of slices, and as `center_lines` does.
        """
        if kspace.shape[1] != self.num_slices:
            raise ValueError(f"this network reconstructs {self.num_slices} slices together, got {kspace.shape[1]}")
        # 1. Maps, and the image of what was sampled.
        groups = coil_groups(kspace.shape[2], self.coils_at_once)
        maps = self.sensitivity(kspace, sampled, num_low_frequencies)
        parts = (combine(zero_filled_coils(kspace[:, :, of], sampled), maps[:, :, of]) for of in groups)
        image = first = reduce(torch.add, parts)
        latent = [first] * self.num_latent
        acquisition = NormalOperator(maps, sampled, coils_at_once=self.coils_at_once)
        # 2. Cascades.
        history: list[Made] = []
        for cascade in self.cascades:
            arguments = (image, latent, first, acquisition, history)
            image, latent, made = (
                checkpoint(cascade, *arguments, use_reentrant=False, preserve_rng_state=False)
                if self.checkpointing
                else cascade(*arguments)
            )
            history = [*history, made][-self.num_history :] if self.num_history else []
        # 3. The centre slice.
        center = self.num_slices // 2
        return expand(image[:, center], maps[:, center])


@RECONSTRUCTIONS.register("variational_network")
class VariationalNetwork(PromptMRPlus):
    """PromptMR+ without its prompts and buffers: a variational network of the same blocks.

    Source: Sriram et al., End-to-end variational networks, 2020, whose step is in k-space and whose U-Net is another.
    """

    def __init__(
        self,
        *,
        num_cascades: int = 8,
        num_slices: int = 3,
        unet: UnetShape = UnetShape(),
        sensitivity: SensitivityShape = SensitivityShape(),
        checkpointing: bool = False,
    ) -> None:
        super().__init__(
            num_cascades=num_cascades,
            num_slices=num_slices,
            unet=replace(unet, prompts=False),
            sensitivity=replace(sensitivity, unet=replace(sensitivity.unet, prompts=False)),
            num_buffers=0,
            checkpointing=checkpointing,
        )
