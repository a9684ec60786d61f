"""A moving average of a module's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class ExponentialMovingAverage(nn.Module):
    """Keeps `model`, a copy whose weights follow another module's; part of the state dict, never trained.

    Raises ValueError for a momentum outside (0, 1).
    """

    def __init__(self, module: Any, *, momentum: float) -> None:
        super().__init__()
        if not 0 < momentum < 1:
            raise ValueError(f"momentum must lie between 0 and 1, got {momentum}")
        self.momentum = momentum
        self.model = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: Any) -> None:
        """Set average ← momentum · average + (1 − momentum) · weights."""
        for average, weight in zip(self.model.parameters(), module.parameters(), strict=True):
            average.lerp_(weight.to(average.dtype), 1 - self.momentum)
