"""An image like the target: what a network learns from fully sampled k-space."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from voxelwave.contracts import Reconstruction, StepOutput
from voxelwave.losses.image_mask import THRESHOLDS, Anatomy, challenge_mask
from voxelwave.losses.structural_similarity import StructuralSimilarityLoss
from voxelwave.physics.fourier import center_crop
from voxelwave.physics.sampled_lines import as_lines
from voxelwave.registry import RECONSTRUCTION_OBJECTIVES


@runtime_checkable
class WithTarget(Protocol):
    """What is read of a batch."""

    @property
    def kspace(self) -> Complex[Tensor, "batch slice coil height width"]:
        """Undersampled, of adjacent slices."""
        ...

    @property
    def sampled(self) -> Bool[Tensor, "batch height width"]:
        """Where it is sampled."""
        ...

    @property
    def target(self) -> Float[Tensor, "batch rows columns"] | None:
        """The image to be reconstructed, the centre of that of the k-space."""
        ...

    @property
    def data_range(self) -> Float[Tensor, " batch"]:
        """The largest value that an image of its kind has."""
        ...

    @property
    def modality(self) -> str:
        """The anatomy, or any other word."""
        ...


@RECONSTRUCTION_OBJECTIVES.register("supervised")
class SupervisedReconstruction(nn.Module):
    """1 − the structural similarity of image and target, inside of the anatomy's mask where the batch says one.

    Images in another unit than fastMRI's, which are dark everywhere, count whole.

    Source: Xin et al., PromptMR, 2023, section 3; the mask and the similarity are those of the challenge's score.
    """

    needs_target: ClassVar = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._loss = StructuralSimilarityLoss()

    def forward(self, batch: WithTarget, generator: torch.Generator) -> StepOutput:
        """Return the loss; `generator` is not used. Raises ValueError for a batch without a target."""
        if batch.target is None:
            raise ValueError("there is no target to learn from: take the objective self_supervised")
        image = reconstructed(self.network, batch)
        inside = None
        if batch.modality in ("brain", "knee"):
            anatomy: Anatomy = batch.modality  # type: ignore[assignment]  # one of the two
            inside = challenge_mask(batch.target, anatomy=anatomy)
            # Where all images of a volume are below the mask's threshold, they are in another unit.
            inside |= (batch.data_range.to(inside.device) <= THRESHOLDS[anatomy])[:, None, None]
        loss = self._loss(image, batch.target, batch.data_range, inside)
        error = (image - batch.target).square().sum() / batch.target.square().sum().clamp_min(1e-30)
        return StepOutput(loss, {"loss": loss.detach(), "nmse": error.detach()})


def reconstructed(network: Reconstruction | nn.Module, batch: WithTarget) -> Float[Tensor, "batch rows columns"]:
    """Return what a network makes of a batch, the centre of it in the size of the target where there is one.

    Whole lines are handed on as lines, which unrolled networks transform along the width alone.
    """
    image: Tensor = network(batch.kspace, as_lines(batch.sampled))
    return image if batch.target is None else center_crop(image, tuple(batch.target.shape[-2:]))  # type: ignore[arg-type]
