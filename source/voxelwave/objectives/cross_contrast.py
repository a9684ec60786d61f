"""One anatomy in two contrasts: places of a head are told in each of two views, and hidden voxels are predicted."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from voxelwave.contracts import Masking, MaskLevels, StepOutput
from voxelwave.losses.masked_reconstruction import MaskedReconstruction
from voxelwave.losses.place_contrast import PlaceContrast
from voxelwave.objectives.masked_modeling import Backbone, MaskedVoxels, linear_head
from voxelwave.ops.patches import patchify, token_grid
from voxelwave.registry import OBJECTIVES
from voxelwave.sparse.decoder import LightDecoder
from voxelwave.sparse.encoder import SparseEncoder

MOST_PLACES = 4096  # of a batch that are contrasted with each other: memory grows with their square
COVERED = 0.5  # of the weights that a feature is interpolated with; below, it would be of hidden neighbours


class PairedView(NamedTuple):
    """One view of each head of a batch.

    Attributes:
        seen: what the backbone sees, with noise, bias field and whatever else was added.
        clean: the same voxels without that, which are predicted.
        to_mm: voxel to mm of a space that both views share.
        labels: what is where, in whole numbers from 0, which is air; None where nobody knows.
        heads: a number for each head of the batch; None where no two are the same.
        persons: a number for whose head each is, at one time or another; None where no two are of one.
    """

    seen: Float[Tensor, "batch channel depth height width"]
    clean: Float[Tensor, "batch channel depth height width"]
    to_mm: Float[Tensor, "batch 4 4"]
    labels: UInt8[Tensor, "batch depth height width"] | None = None
    heads: Int[Tensor, " batch"] | None = None
    persons: Int[Tensor, " batch"] | None = None


@OBJECTIVES.register("cross_contrast")
class CrossContrast(MaskedVoxels):
    """Hide patches of both views, predict them, and contrast the deep features of places that both show.

    Each view has its own contrast, crop, affine and mask, so that neither the field of view nor the intensities tell a
    place. The contrast weighs `contrastive_weight`; for the other settings see `losses.place_contrast.PlaceContrast`.
    Hidden patches are predicted from the features after block `reconstruction_depth` (0 is the last): what they need of
    the contrast of a view need not stay in the features after it.
    With `cross_reconstruction_weight` above 0, hidden patches of a view are also predicted from what the other view
    shows at their places; what the view itself shows tells in which contrast.
    Sources: anatomix (Dey et al., 2025) contrasts voxels between two appearances; MAE (He et al., 2022); CroCo
    (Weinzaepfel et al., 2022) completes a view from another one of the same scene.
    Raises ValueError for a weight below 0, and for a depth that the backbone has not.
    """

    needs_labels: ClassVar = False
    hides: ClassVar = True

    def __init__(
        self,
        backbone: Backbone,
        masking: Masking,
        encoder: SparseEncoder,
        decoder: LightDecoder,
        reconstruction: MaskedReconstruction,
        *,
        contrastive_weight: float = 1.0,
        temperature: float = 0.1,
        margin_mm: float = 0.0,
        projection_dim: int = 0,
        cross_reconstruction_weight: float = 0.0,
        reconstruction_depth: int = 0,
    ) -> None:
        if contrastive_weight < 0:
            raise ValueError(f"contrastive_weight is at least 0, got {contrastive_weight}")
        contrast = PlaceContrast(
            backbone.channels, temperature=temperature, margin_mm=margin_mm, projection_dim=projection_dim
        )
        super().__init__(
            *(backbone, masking, encoder, decoder, contrast, reconstruction),
            decoder_width=decoder.width,
            contrastive_weight=contrastive_weight,
            shallow_depth=0,
        )
        if cross_reconstruction_weight < 0:
            raise ValueError(f"cross_reconstruction_weight is at least 0, got {cross_reconstruction_weight}")
        if not 0 <= reconstruction_depth <= backbone.depth:
            raise ValueError(f"reconstruction_depth lies in 0…{backbone.depth}, got {reconstruction_depth}")
        self.cross_reconstruction_weight = cross_reconstruction_weight
        self.reconstruction_depth = reconstruction_depth or backbone.depth
        # Last, and only where it is used: all other weights begin as they would without it.
        self.cross_heads: nn.ModuleDict | None = None
        if cross_reconstruction_weight:
            width, voxels = 2 * backbone.channels, backbone.patch_size**3
            self.cross_heads = nn.ModuleDict(
                {
                    str(count): nn.Sequential(nn.Linear(width, width), nn.GELU(), linear_head(width, count * voxels))
                    for count in backbone.in_channels
                }
            )

    def forward(  # type: ignore[override]  # of a pair, where the other objectives see one volume
        self, views: tuple[PairedView, PairedView], generator: torch.Generator
    ) -> StepOutput:
        """Return the loss of one batch; `generator` (CPU) draws the masks."""
        # 1. Both views, each under its own mask.
        levels = [self.draw(view.seen, generator) for view in views]
        depths = [self.reconstruction_depth]
        grids = [
            self.backbone.forward_intermediates(view.seen, hidden.hidden, depths)
            for view, hidden in zip(views, levels, strict=True)
        ]
        deep = [final for final, _ in grids]
        # 2. Predict the hidden patches of each, without what the scanner added.
        errors = []
        for view, hidden, (_, (inner,)) in zip(views, levels, grids, strict=True):
            predicted = self._predict(self._normed(inner), hidden, view.clean.shape[1])
            patches = patchify(view.clean, self.backbone.patch_size)[hidden.hidden.flatten(1)]
            errors.append(self.reconstruction(predicted, patches, hidden.hard[hidden.hidden]))
        # 3. The places of the first view that the second shows, too.
        counted = [of.visible & self.tissue(view.clean) for view, of in zip(views, levels, strict=True)]
        there = self._corresponding(views[0], views[1])
        other, covered = interpolated(deep[1], counted[1], there.tokens)
        both = counted[0] & covered
        rows = _some(both.nonzero())
        heads = rows[:, 0] if views[0].heads is None else views[0].heads[rows[:, 0]]
        persons = None if views[0].persons is None else views[0].persons[rows[:, 0]]
        contrast, alignment = self.contrastive(
            *(grid[rows.unbind(1)] for grid in (deep[0].movedim(1, -1), other, there.places_mm)), heads, persons
        )
        # 4. Predict the hidden patches of each from what the other shows at their places.
        crossed = {}
        if self.cross_heads is not None:
            back = interpolated(deep[0], counted[0], self._corresponding(views[1], views[0]).tokens)
            own = [mean_of_counted(*of) for of in zip(deep, counted, strict=True)]
            both_ways = zip(views, levels, [(other, covered), back], own, strict=True)
            crossed["cross_reconstruction"] = torch.stack([self._crossed(*of) for of in both_ways]).mean()
        # 5. Together.
        reconstruction = (errors[0].loss + errors[1].loss) / 2
        loss = reconstruction + self.contrastive_weight * contrast
        loss = loss + sum(self.cross_reconstruction_weight * value for value in crossed.values())
        logs = {
            "loss": loss,
            "reconstruction": reconstruction,
            "contrastive": contrast,
            **{name: sum(getattr(of, name) for of in errors) / 2 for name in ("easy", "hard", "baseline")},
            "alignment": alignment,
            "shared_places": both.sum() / len(both),
            **crossed,
        }
        return StepOutput(loss, {name: torch.as_tensor(value).detach() for name, value in logs.items()})

    def _features(self, volume: Tensor, hidden: Tensor) -> Tensor:
        _, (inner,) = self.backbone.forward_intermediates(volume, hidden, [self.reconstruction_depth])
        return self._normed(inner)

    def _normed(self, features: Tensor) -> Tensor:
        normed: Tensor = self.backbone.norm(features.movedim(1, -1))
        return normed.movedim(-1, 1)

    def _corresponding(self, view: PairedView, other: PairedView) -> Correspondence:
        grid = token_grid(view.clean.shape, self.backbone.patch_size)
        return corresponding(view.to_mm, other.to_mm, grid, patch_size=self.backbone.patch_size)

    def _crossed(
        self,
        view: PairedView,
        levels: MaskLevels,
        shown: tuple[Float[Tensor, "batch d h w embed"], Bool[Tensor, "batch d h w"]],
        own: Float[Tensor, "batch embed"],
    ) -> Float[Tensor, ""]:
        """Return the error of the hidden patches of `view` that the other view shows; where it shows none that is 0.

        Args:
            view, levels: whose hidden patches are predicted.
            shown: the other view's features at the places of all tokens of `view`, and where there are any.
            own: what tells the contrast of `view`, and nothing of a place.
        """
        assert self.cross_heads is not None
        features, covered = shown
        chosen, count = levels.hidden & covered, view.clean.shape[1]
        known = torch.cat([features[chosen], own[chosen.nonzero()[:, 0]]], 1)
        predicted: Tensor = self.cross_heads[str(count)](known).unflatten(1, (count, -1))
        if not len(predicted):
            return predicted.float().sum()  # 0, and the head stays in the graph
        patches = patchify(view.clean, self.backbone.patch_size)[chosen.flatten(1)]
        return self.reconstruction(predicted, patches, levels.hard[chosen]).loss


class Correspondence(NamedTuple):
    """Where each token of one view lies, in mm and in tokens of the other view, counted from its first."""

    places_mm: Float[Tensor, "batch d h w 3"]
    tokens: Float[Tensor, "batch d h w 3"]


def corresponding(
    to_mm: Float[Tensor, "batch 4 4"],
    other_to_mm: Float[Tensor, "batch 4 4"],
    grid: tuple[int, ...],
    *,
    patch_size: int,
) -> Correspondence:
    """Return where the centres of all tokens of a view lie, by the affines of both views."""
    sides = [torch.arange(side, device=to_mm.device, dtype=torch.float64) for side in grid]
    tokens = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1)
    # The centre of token 0 is that of its voxels 0 to patch_size - 1.
    voxels = (tokens + 0.5) * patch_size - 0.5
    places = _moved(voxels.expand(len(to_mm), *voxels.shape), to_mm.double())
    others = _moved(places, torch.linalg.inv(other_to_mm.double()))
    return Correspondence(places.float(), ((others + 0.5) / patch_size - 0.5).float())


def interpolated(
    features: Float[Tensor, "batch embed d2 h2 w2"],
    counted: Bool[Tensor, "batch d2 h2 w2"],
    places: Float[Tensor, "batch d h w 3"],
) -> tuple[Float[Tensor, "batch d h w embed"], Bool[Tensor, "batch d h w"]]:
    """Return features at `places` (in tokens) by trilinear weights of the counted tokens, and where these suffice."""
    sides = torch.tensor(features.shape[2:], device=places.device)
    where = ((2 * places + 1) / sides - 1).flip(-1)
    weights = counted.unsqueeze(1).float()
    with torch.autocast(features.device.type, enabled=False):
        stacked = torch.cat([features.float() * weights, weights], 1)
        found = F.grid_sample(stacked, where.float(), padding_mode="zeros", align_corners=False).movedim(1, -1)
    covered = found[..., -1]
    return found[..., :-1] / covered.clamp_min(1e-6).unsqueeze(-1), covered >= COVERED


def mean_of_counted(
    features: Float[Tensor, "batch embed d h w"], counted: Bool[Tensor, "batch d h w"]
) -> Float[Tensor, "batch embed"]:
    """Return the mean over the counted tokens of each sample, 0 where there are none."""
    weights = counted.unsqueeze(1).float()
    mean: Tensor = (features.float() * weights).sum((2, 3, 4)) / weights.sum((2, 3, 4)).clamp_min(1)
    return mean


def _some(rows: Int[Tensor, "row index"]) -> Int[Tensor, "some index"]:
    """Return as many rows as are contrasted at most, evenly spread."""
    if len(rows) <= MOST_PLACES:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, MOST_PLACES, device=rows.device).round().long()]


def _moved(
    places: Float[Tensor, "batch d h w 3"], affine: Float[Tensor, "batch 4 4"]
) -> Float[Tensor, "batch d h w 3"]:
    moved: Tensor = torch.einsum("bij,b...j->b...i", affine[:, :3, :3], places) + affine[:, None, None, None, :3, 3]
    return moved
