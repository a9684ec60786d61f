"""Masked modelling of volumes: hide blocks, encode what is left, predict the rest, and contrast places."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from voxelwave.contracts import Masking, MaskLevels, StepOutput
from voxelwave.engine.ema import ExponentialMovingAverage
from voxelwave.losses.masked_reconstruction import MaskedError, MaskedReconstruction
from voxelwave.ops.patches import patchify, token_grid, unpatchify
from voxelwave.sparse.decoder import LightDecoder
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.volume import SparseVolume


@runtime_checkable
class Backbone(Protocol):
    """What the objective, and what is built downstream, ask of a backbone; `backbones.waveformer` is one.

    Attributes:
        stems: the first layer of each channel count, by its number as text; all of the patch embedding, or its start.
        blocks: one for each of `depth`; the last ones can be removed, and the backbone then ends before them.
        norm: along the channels, for the tokens of any depth.
    """

    in_channels: tuple[int, ...]
    patch_size: int
    channels: int
    depth: int
    if TYPE_CHECKING:  # isinstance of Python 3.12 does not find what nn.Module keeps among its modules
        stems: nn.ModuleDict
        blocks: nn.ModuleList
        norm: nn.Module

    def forward_intermediates(
        self, volume: Tensor, hidden: Tensor | None = None, depths: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the feature grid and the raw grids after `depths`, hidden tokens 0."""
        ...


class MaskedModeling(nn.Module, ABC):
    """What both targets share: the parts, the contrast between depths, and the sum of the losses.

    Raises ValueError for a `shallow_depth` that is not below the backbone's depth.
    """

    def __init__(
        self,
        backbone: Backbone,
        masking: Masking,
        encoder: SparseEncoder,
        decoder: LightDecoder,
        contrastive: nn.Module,
        reconstruction: MaskedReconstruction,
        *,
        contrastive_weight: float = 0.5,
        shallow_depth: int = 1,
    ) -> None:
        super().__init__()
        if not 0 <= shallow_depth < backbone.depth:
            raise ValueError(f"shallow_depth must lie in 0…{backbone.depth - 1}, got {shallow_depth}")
        self.backbone = backbone
        self.masking = masking
        self.encoder = encoder
        self.decoder = decoder
        self.contrastive = contrastive
        self.reconstruction = reconstruction
        self.contrastive_weight = contrastive_weight
        self.shallow_depth = shallow_depth

    def forward(
        self, volume: Float[Tensor, "batch channel depth height width"], generator: torch.Generator
    ) -> StepOutput:
        """Return the loss of one batch; `generator` (CPU) draws the masks."""
        levels = self.draw(volume, generator)
        error, contrast = self.compare(volume, levels)
        loss = error.loss
        if contrast:
            loss = loss + self.contrastive_weight * contrast["contrastive"]
        logs = {
            "loss": loss,
            "reconstruction": error.loss,
            **contrast,
            "easy": error.easy,
            "hard": error.hard,
            "baseline": error.baseline,
        }
        return StepOutput(loss, {name: value.detach() for name, value in logs.items()})

    @abstractmethod
    def compare(self, volume: Tensor, levels: MaskLevels) -> tuple[MaskedError, dict[str, Tensor]]:
        """Return the error of the predictions, and what `contrast` does."""

    def contrast(
        self, shallow: Tensor, deep: Tensor, volume: Tensor, visible: Bool[Tensor, "batch d h w"] | None = None
    ) -> dict[str, Tensor]:
        """Return the contrastive loss, and the share of places that find themselves; nothing where it has no weight.

        Shallow features find the deep ones of their own place, among all of `visible` tissue, or all tissue.
        """
        if self.contrastive_weight == 0:
            return {}
        tissue = self.tissue(volume)
        loss, alignment = self.contrastive(shallow, deep, tissue if visible is None else visible & tissue)
        return {"contrastive": loss, "alignment": alignment}

    @abstractmethod
    def pictures(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return volumes `[batch, channel, D, H, W]` in 0…1 by title: what was seen, hidden (NaN) and predicted."""

    def draw(self, volume: Tensor, generator: torch.Generator) -> MaskLevels:
        """Draw the masks of a batch."""
        grid = token_grid(volume.shape, self.backbone.patch_size)
        return MaskLevels(self.masking(grid, len(volume), generator).levels.to(volume.device))

    def encode(
        self,
        volume: Float[Tensor, "batch channel depth height width"],
        hidden: Bool[Tensor, "batch d h w"] | None = None,
    ) -> Float[Tensor, "batch token embed"]:
        """Return the backbone's features of the visible tokens in raster order, all of them where `hidden` is None.

        Raises ValueError where samples have different numbers of visible tokens.
        """
        grid, _ = self.backbone.forward_intermediates(volume, hidden)
        tokens = grid.flatten(2).transpose(1, 2)
        if hidden is None:
            return tokens
        counts = (~hidden).flatten(1).sum(1).tolist()
        if len(set(counts)) > 1:
            raise ValueError(f"samples of one batch must have as many visible tokens each, got {counts}")
        visible: Tensor = tokens[~hidden.flatten(1)].unflatten(0, (len(volume), -1))
        return visible

    def decode(
        self, features: Float[Tensor, "batch embed d h w"], visible: Bool[Tensor, "batch d h w"]
    ) -> Float[Tensor, "batch width d h w"]:
        """Encode the visible features at every scale and return one feature for every token."""
        # oneDNN's bf16 conv3d returns garbage for the gradient of its weights on grids with a side of 2, so that
        # these convolutions keep the precision of their weights on the CPU. Other devices go on as they were.
        with torch.autocast("cpu", enabled=False):
            if features.device.type == "cpu":
                features = features.to(self.decoder.norm.weight.dtype)
            scales = self.encoder(SparseVolume.at(features, visible))
            decoded: Tensor = self.decoder(scales)
        return decoded

    def tissue(self, volume: Float[Tensor, "batch channel depth height width"]) -> Bool[Tensor, "batch d h w"]:
        """Tokens whose patch varies in some channel: not air."""
        patches = patchify(volume, self.backbone.patch_size)
        grid = token_grid(volume.shape, self.backbone.patch_size)
        varies: Tensor = self.reconstruction.statistics(patches).varies.any(2).unflatten(1, grid)
        return varies

    def after_step(self) -> None:
        """Called once after every optimiser step."""


class MaskedVoxels(MaskedModeling):
    """Mask before the backbone, predict the voxels of hidden patches, each normalised by its own patch.

    Sources: MAE (He et al., 2022), SparK (Tian et al., 2023), MiM (Zhuang et al., 2024).
    """

    def __init__(self, *parts: object, decoder_width: int, **settings: float | int) -> None:
        super().__init__(*parts, **settings)  # type: ignore[arg-type]
        voxels = self.backbone.patch_size**3
        self.heads = nn.ModuleDict(
            {str(channels): linear_head(decoder_width, channels * voxels) for channels in self.backbone.in_channels}
        )

    def compare(self, volume: Tensor, levels: MaskLevels) -> tuple[MaskedError, dict[str, Tensor]]:
        """Predict hidden voxels from the visible tokens; contrast depths over the visible tissue."""
        # 1. The backbone sees the visible patches alone.
        deep, (shallow,) = self.backbone.forward_intermediates(volume, levels.hidden, [self.shallow_depth])
        # 2. Predict every hidden patch from the same context, whatever its level.
        predicted = self._predict(deep, levels, volume.shape[1])
        patches = patchify(volume, self.backbone.patch_size)[levels.hidden.flatten(1)]
        error = self.reconstruction(predicted, patches, levels.hard[levels.hidden])
        return error, self.contrast(shallow, deep, volume, levels.visible)

    def _features(self, volume: Tensor, hidden: Tensor) -> Tensor:
        """Return what hidden patches are predicted from."""
        deep, _ = self.backbone.forward_intermediates(volume, hidden)
        return deep

    def _predict(self, deep: Tensor, levels: MaskLevels, channels: int) -> Float[Tensor, "token channel voxel"]:
        decoded = self.decode(deep, levels.visible).movedim(1, -1)[levels.hidden]
        predicted: Tensor = self.heads[str(channels)](decoded).unflatten(1, (channels, -1))
        return predicted

    @torch.no_grad()
    def pictures(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Show hidden patches predicted; each takes its true mean and deviation, as in MAE."""
        levels = self.draw(volume, generator)
        features = self._features(volume, levels.hidden)
        patches, hidden = patchify(volume, self.backbone.patch_size), levels.hidden.flatten(1)
        mean, std, varies = self.reconstruction.statistics(patches[hidden])
        guess = self._predict(features, levels, volume.shape[1]).to(patches.dtype) * std * varies.unsqueeze(-1) + mean
        masked, predicted = patches.clone(), patches.clone()
        masked[hidden], predicted[hidden] = torch.nan, guess
        grid = token_grid(volume.shape, self.backbone.patch_size)
        return {
            "input": volume,
            "masked input": unpatchify(masked, grid),
            "reconstruction": unpatchify(predicted, grid),
        }


class MaskedFeatures(MaskedModeling):
    """Encode the whole volume, mask its features, and predict the hidden ones, as was first described.

    The target is the output of the last block, of this network or of a teacher that is its moving average
    (`ema_momentum` above 0). First described was a raw, attached target: without `stop_gradient` it shrinks to meet the
    prediction, and detached without `layer_norm` its scale runs away (benchmarks/results/subset_study.md).
    """

    def __init__(
        self,
        *parts: object,
        decoder_width: int,
        stop_gradient: bool = True,
        ema_momentum: float = 0.0,
        layer_norm: bool = True,
        **settings: float | int,
    ) -> None:
        super().__init__(*parts, **settings)  # type: ignore[arg-type]
        self.stop_gradient = stop_gradient
        self.layer_norm = layer_norm
        self.head = linear_head(decoder_width, self.backbone.channels)
        self.teacher = ExponentialMovingAverage(self.backbone, momentum=ema_momentum) if ema_momentum else None

    def compare(self, volume: Tensor, levels: MaskLevels) -> tuple[MaskedError, dict[str, Tensor]]:
        """Predict hidden features from visible ones; contrast depths over all tissue."""
        # 1. The backbone sees everything.
        depths = [self.shallow_depth, self.backbone.depth]
        _, (shallow, deep) = self.backbone.forward_intermediates(volume, None, depths)
        # 2. Predict the hidden features from the visible ones.
        decoded = self.decode(deep, levels.visible).movedim(1, -1)[levels.hidden]
        predicted = self.head(decoded)
        target = self._target(volume, deep).movedim(1, -1)[levels.hidden]
        squared = (predicted.float() - target.float()).square().mean(-1, keepdim=True)
        spread = (target - target.mean(0)).float().square().mean(-1, keepdim=True).detach()
        everything = torch.ones_like(squared, dtype=torch.bool)
        error = self.reconstruction.weigh(squared, spread, everything, levels.hard[levels.hidden])
        return error, self.contrast(shallow, deep, volume)

    def _target(self, volume: Tensor, deep: Tensor) -> Tensor:
        target = deep.detach() if self.stop_gradient else deep
        if self.teacher is not None:
            with torch.no_grad():
                _, (target,) = self.teacher.model.forward_intermediates(volume, None, [self.backbone.depth])
        if self.layer_norm:
            target = F.layer_norm(target.movedim(1, -1), (target.shape[1],)).movedim(-1, 1)
        return target

    @torch.no_grad()
    def pictures(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Show the direction along which the target features of the batch vary most, and its prediction."""
        levels = self.draw(volume, generator)
        _, (deep,) = self.backbone.forward_intermediates(volume, None, [self.backbone.depth])
        target = self._target(volume, deep).movedim(1, -1).float()
        predicted = self.head(self.decode(deep, levels.visible).movedim(1, -1)).float()
        # 1. Both along the first principal component of the target, which becomes 0…1.
        centre = target.flatten(0, 3).mean(0)
        direction = torch.linalg.eigh(torch.cov(target.flatten(0, 3).T)).eigenvectors[:, -1]
        low, high = torch.aminmax((target - centre) @ direction)
        true, guess = (((x - centre) @ direction - low) / (high - low).clamp_min(1e-12) for x in (target, predicted))
        # 2. One value a token, drawn as large as its patch.
        maps = {
            "target features": true,
            "masked features": true.masked_fill(levels.hidden, torch.nan),
            "predicted features": torch.where(levels.hidden, guess, true),
        }
        scale = self.backbone.patch_size
        return {"input": volume} | {
            title: F.interpolate(tokens.unsqueeze(1), scale_factor=scale, mode="nearest")
            for title, tokens in maps.items()
        }

    def after_step(self) -> None:
        """Move the teacher towards the network."""
        if self.teacher is not None:
            self.teacher.update(self.backbone)


def linear_head(width: int, out: int) -> nn.Linear:
    """A linear head that starts near 0, which for normalised patches is the guess of each patch's mean."""
    head = nn.Linear(width, out)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
