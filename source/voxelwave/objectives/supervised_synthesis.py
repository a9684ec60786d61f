"""The tissue of each voxel, learned from rendered label maps: what pretraining without labels is to be measured by."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.contracts import StepOutput
from voxelwave.objectives.cross_contrast import PairedView
from voxelwave.objectives.masked_modeling import Backbone
from voxelwave.ops.patches import patchify, token_grid, unpatchify
from voxelwave.physics.heads3d import Tissue
from voxelwave.registry import OBJECTIVES

CLASSES = len(Tissue)


@OBJECTIVES.register("supervised_synthesis")
class SupervisedSynthesis(nn.Module):
    """Tell the tissue of each voxel of both views, rendered at random, from the features of its patch alone.

    A linear head makes all voxels of a patch of its token, so that what tells them must be in the backbone; neither
    masks nor a decoder are used. The loss is cross-entropy plus 1 − Dice over the tissues that a batch holds.
    Source: Billot et al., 2023, "SynthSeg", section 3.
    """

    needs_labels: ClassVar = True
    hides: ClassVar = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        dice_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 <= dice_weight <= 1:
            raise ValueError(f"dice_weight lies in 0 to 1, got {dice_weight}")
        self.backbone = backbone
        self.dice_weight = dice_weight
        self.head = nn.Linear(backbone.channels, CLASSES * backbone.patch_size**3)

    def encode(self, volume: Float[Tensor, "batch channel depth height width"]) -> Float[Tensor, "batch token embed"]:
        """Return the backbone's features of all tokens in raster order."""
        features, _ = self.backbone.forward_intermediates(volume)
        return features.flatten(2).transpose(1, 2)

    def forward(self, views: tuple[PairedView, PairedView], generator: torch.Generator) -> StepOutput:
        """Return the loss of one batch; `generator` is not used."""
        outputs = [self._loss(view) for view in views]
        logs = {name: torch.stack([of[name] for of in outputs]).mean() for name in outputs[0]}
        return StepOutput(logs["loss"], {name: value.detach() for name, value in logs.items()})

    def _loss(self, view: PairedView) -> dict[str, Tensor]:
        assert view.labels is not None
        logits = self._logits(view.seen)
        truth = patchify(view.labels.unsqueeze(1).float(), self.backbone.patch_size).squeeze(2).long()
        entropy = F.cross_entropy(logits.flatten(0, 2), truth.flatten())
        shares = logits.softmax(-1).flatten(0, 2)
        true = F.one_hot(truth.flatten(), CLASSES)
        overlap, sizes = (shares * true).sum(0), shares.sum(0) + true.sum(0)
        present = true.any(0)
        dice = (2 * overlap / sizes.clamp_min(1))[present].mean()
        accuracy = (logits.argmax(-1) == truth).float().mean()
        loss = (1 - self.dice_weight) * entropy + self.dice_weight * (1 - dice)
        return {"loss": loss, "cross_entropy": entropy, "dice": dice, "accuracy": accuracy}

    def _logits(self, volume: Tensor) -> Float[Tensor, "batch token voxel class"]:
        logits: Tensor = self.head(self.encode(volume)).float().unflatten(-1, (self.backbone.patch_size**3, CLASSES))
        return logits

    @torch.no_grad()
    def pictures(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the volume and the tissues that are told in it, as greys."""
        told = self._logits(volume).argmax(-1).float() / (CLASSES - 1)
        grid = token_grid(volume.shape, self.backbone.patch_size)
        return {"input": volume, "tissues": unpatchify(told.unsqueeze(2), grid)}

    def after_step(self) -> None:
        """Nothing moves but by gradients."""
