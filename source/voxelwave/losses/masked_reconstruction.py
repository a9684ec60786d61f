"""Mean squared error on hidden patches, as they are or each normalised by its own mean and variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class MaskedError(NamedTuple):
    """Errors of the hidden tokens: the weighted `loss`, the plain means by level, and what a trivial guess scores."""

    loss: Float[Tensor, ""]
    easy: Float[Tensor, ""]
    hard: Float[Tensor, ""]
    baseline: Float[Tensor, ""]


class PatchStatistics(NamedTuple):
    """What each patch and channel is normalised by (0 and 1 where it is not), and which vary enough to count."""

    mean: Float[Tensor, "*patch 1"]
    std: Float[Tensor, "*patch 1"]
    varies: Bool[Tensor, "*patch"]


class MaskedReconstruction:
    """Compare predictions with hidden patches, channel by channel.

    A patch whose standard deviation is below `min_std` (in units of the scaled intensity, 0 to 1) is air or a
    saturated window: it has no structure to predict and does not count. `easy_weight` and `hard_weight` weigh the
    tokens of the two levels of the mask; `intensities` predicts them as they are.
    Raises ValueError for negative weights, two of 0, or a `min_std` of 0 or less.
    Source: He et al., MAE, 2022, section 4.1 (normalised pixel targets).
    """

    def __init__(
        self,
        *,
        min_std: float = 0.02,
        easy_weight: float = 1.0,
        hard_weight: float = 1.0,
        intensities: bool = False,
    ) -> None:
        if min(easy_weight, hard_weight) < 0 or easy_weight + hard_weight == 0:
            raise ValueError(f"weights must be 0 or more and not both 0, got {easy_weight} and {hard_weight}")
        if min_std <= 0:
            raise ValueError(f"min_std must be above 0, got {min_std}")
        self.min_std = min_std
        self.easy_weight = easy_weight
        self.hard_weight = hard_weight
        self.intensities = intensities

    def statistics(self, patches: Float[Tensor, "*patch voxel"]) -> PatchStatistics:
        """Return what a patch is normalised by; the deviation is clamped at `min_std`."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
        std = variance.sqrt()
        if self.intensities:
            return PatchStatistics(torch.zeros_like(mean), torch.ones_like(std), std[..., 0] >= self.min_std)
        return PatchStatistics(mean, std.clamp_min(self.min_std), std[..., 0] >= self.min_std)

    def __call__(
        self,
        predicted: Float[Tensor, "token channel voxel"],
        patches: Float[Tensor, "token channel voxel"],
        hard: Bool[Tensor, "token"],
    ) -> MaskedError:
        """Score hidden tokens; `hard` marks those of the second level. The baseline predicts each patch's mean."""
        mean, std, varies = self.statistics(patches)
        target = (patches - mean) / std
        error = (predicted.float() - target).square().mean(-1)
        return self.weigh(error, target.var(-1, correction=0), varies, hard)

    def weigh(
        self,
        error: Float[Tensor, "token channel"],
        baseline: Float[Tensor, "token channel"],
        counted: Bool[Tensor, "token channel"],
        hard: Bool[Tensor, "token"],
    ) -> MaskedError:
        """Average errors over the counted entries, by level and together. Nothing counted gives 0."""
        is_hard = hard[:, None] & counted
        is_easy = ~hard[:, None] & counted
        weight = self.hard_weight * is_hard + self.easy_weight * is_easy

        def mean(values: Tensor, weights: Tensor) -> Tensor:
            return (values * weights).sum() / weights.sum().clamp_min(1e-12)

        return MaskedError(mean(error, weight), mean(error, is_easy), mean(error, is_hard), mean(baseline, weight))
