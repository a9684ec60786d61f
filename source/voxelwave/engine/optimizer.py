"""Groups of parameters as an optimiser takes them, and AdamW outside of the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from voxelwave.ops.torchvision_operators import make_torchvision_importable


def weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters in groups: weights, which decay, then biases, norms and other vectors.

    A group that would be empty is left out; without any decay there is one of all.
    """
    make_torchvision_importable()
    from timm.optim import param_groups_weight_decay

    # Turned around: the states of optimisers in checkpoints have this order.
    groups: list[dict[str, Any]] = param_groups_weight_decay(module, weight_decay)[::-1]
    return groups


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW whose moments lie in the CPU's memory, and which computes there: 8 bytes a parameter less on a GPU.

    What ZeRO calls stage 1 with offload, on one device: gradients are copied to the CPU, torch's vectorised kernel
    updates single-precision weights there, and these are copied back. Weights that are on the CPU in single precision
    are updated in their place.
    Source: Loshchilov and Hutter, 2019, AdamW; Ren et al., 2021, ZeRO-Offload, section 4.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.01})
        weights = [
            {**group, "params": [parameter.detach().to("cpu", torch.float32) for parameter in group["params"]]}
            for group in self.param_groups
        ]
        self._inner = torch.optim.AdamW(weights, lr=lr, betas=betas, fused=True)
        self.state = self._inner.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # a closure is never given
        """Update the parameters."""
        assert closure is None
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            inner.update({key: value for key, value in group.items() if key != "params"})
            for parameter, weight in zip(group["params"], inner["params"], strict=True):
                weight.grad = None if parameter.grad is None else parameter.grad.to("cpu", torch.float32)
        self._inner.step()
        for parameter, weight in self._pairs():
            if parameter.data_ptr() != weight.data_ptr():
                parameter.copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """Return the moments; the weights are in the model's own state."""
        state: dict[str, Any] = self._inner.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from moments, with the weights that the model has now."""
        self._inner.load_state_dict(state_dict)
        self.state = self._inner.state
        with torch.no_grad():
            for parameter, weight in self._pairs():
                if parameter.data_ptr() != weight.data_ptr():
                    weight.copy_(parameter)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            yield from zip(group["params"], inner["params"], strict=True)
