"""Groups of parameters as an optimiser takes them."""

from __future__ import annotations

from typing import Any

from torch import nn

from voxelwave.ops.torchvision_operators import make_torchvision_importable


def weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in two groups: weights, which decay, and biases, norms and other vectors."""
    make_torchvision_importable()
    from timm.optim import param_groups_weight_decay

    kept, decayed = param_groups_weight_decay(module, weight_decay)
    # In this order, which the states of optimisers in checkpoints have.
    return [decayed, kept]
