"""Classification: a backbone's features, pooled over the volume for each target by itself."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.contracts import Grid
from voxelwave.data.batches.views import fit, pad
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.ops.evaluating import evaluating

ATTENTION_WIDTH = 128


class ClassificationModel(nn.Module):
    """One logit for each target; several targets may be true of one volume.

    The features of all levels are concatenated, and averaged over the tokens with weights that are learned for each
    target: in a plain mean a lesion of a few voxels would vanish. At the beginning all tokens weigh the same.

    Source: Ilse et al., Attention-based deep multiple instance learning, ICML 2018, equations 7 and 8.

    Args:
        features: the backbone.
        num_targets: logits.
        pooling: "attention", or "mean" for even weights.

    Raises ValueError for no target, or another pooling.
    """

    def __init__(self, features: FeaturePyramid, *, num_targets: int, pooling: str = "attention") -> None:
        super().__init__()
        if num_targets < 1 or pooling not in ("attention", "mean"):
            raise ValueError(
                f"num_targets is at least 1 and pooling 'attention' or 'mean', got {num_targets} and '{pooling}'"
            )
        self.features = features
        channels = sum(features.channels)
        self.attend: nn.Module | None = None
        if pooling == "attention":
            score = nn.Linear(ATTENTION_WIDTH, num_targets)
            nn.init.zeros_(score.weight)
            self.attend = nn.Sequential(nn.Linear(channels, ATTENTION_WIDTH), nn.Tanh(), score)
        self.classify = nn.Linear(channels, num_targets)

    def forward(self, volume: Float[Tensor, "batch channel depth height width"]) -> Float[Tensor, "batch target"]:
        """Return logits; raises ValueError for another channel count or a side that the patch does not divide."""
        tokens = torch.cat(self.features(volume), dim=1).flatten(2).transpose(1, 2)
        if self.attend is None:
            pooled = tokens.mean(1, keepdim=True)
        else:
            pooled = self.attend(tokens).softmax(dim=1).transpose(1, 2) @ tokens
        logits: Tensor = (pooled * self.classify.weight).sum(2) + self.classify.bias
        return logits


def whole(
    volume: Float[Tensor, "channel depth height width"], size: Grid
) -> Float[Tensor, "channel new_depth new_height new_width"]:
    """Return all of a volume on `size` voxels: padded, and shrunk before that where it is larger, never enlarged.

    What is true of a volume may be false of a part of it, so nothing is cut off.
    """
    fits = all(old <= new for old, new in zip(volume.shape[1:], size, strict=True))
    return pad(volume, size) if fits else fit(volume, size)


def predict_targets(
    model: nn.Module, volume: Float[Tensor, "channel depth height width"], *, size: Grid
) -> Float[Tensor, " target"]:
    """Return the logits of a whole volume, which the model sees on `size` voxels, as in evaluation, on its device."""
    device = next(model.parameters()).device
    with evaluating(model):
        logits: Tensor = model(whole(volume.float(), size)[None].to(device))
    return logits[0].float().to(volume.device)
