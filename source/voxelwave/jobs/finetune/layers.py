"""Which parameters learn at which rate: the deeper a layer lies below the head, the slower (Clark et al., ELECTRA)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from voxelwave.downstream.features import FeaturePyramid
from voxelwave.ops.torchvision_operators import make_torchvision_importable

# In order; what none of them matches is the head. timm takes the last norm to be of the last block. Whatever else a
# backbone has lies before its blocks: the patch embedding, which may be several layers, and the token of hidden places.
LAYERS = {
    "stem": r"features\.backbone\.(?!blocks\.|norm\.)",
    "blocks": [(r"features\.backbone\.blocks\.(\d+)\.", None), (r"features\.backbone\.norm", (99999,))],
}


class _Layered:
    """What timm asks of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._model.named_parameters()

    def group_matcher(self, coarse: bool) -> dict[str, Any]:
        return LAYERS


def parameter_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float = 1.0, lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trained parameters of a model with `features`, in groups with a `weight_decay` and an `lr_scale`.

    With a backbone of n blocks the head is layer n + 1, block i of 1…n with the last norm is layer i, the patch
    embedding layer 0; a layer of the backbone learns at `lr_scale` times `layer_decay` to the power of its distance
    from the head. Biases, norms and other vectors do not decay.
    """
    make_torchvision_importable()
    from timm.optim import param_groups_layer_decay

    groups: list[dict[str, Any]] = param_groups_layer_decay(
        _Layered(model), weight_decay=weight_decay, layer_decay=layer_decay
    )
    backbone = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("features.")}
    for group in groups:
        if id(group["params"][0]) in backbone:
            group["lr_scale"] *= lr_scale
    return groups


def freeze(features: FeaturePyramid) -> None:
    """Keep the weights of a backbone as they are."""
    features.requires_grad_(False)
    features.eval()
