"""Which backend computes an encoder fastest here: found by trying, since it depends on sizes, masks and the machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from voxelwave.sparse.backends import NAMES, make_backend, why_not
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.volume import Sites, SparseVolume

#: A backend that comes earlier among the names is kept where a later one is faster by less than this.
TIE = 0.05


def time_backends(
    encoder: SparseEncoder,
    masks: Sequence[Tensor],
    names: Sequence[str] = NAMES,
    *,
    budget_s: float = 1.0,
    least: int = 3,
) -> dict[str, float]:
    """Return the seconds that a forward and backward pass takes with each backend that runs on the masks' device.

    A pass takes every one of the `masks` in turn, active sites `[batch, depth, height, width]` as a step would have.
    Passes go round by turns, so that a disturbance meets all alike: `least` rounds, more within `budget_s`, fewer where
    they would take ten times that. What first took more than a second, and twice as long as another, is not tried again.
    The encoder is left with the backend it had; no gradient is kept, no random number drawn.
    """
    before = encoder.backend
    device = masks[0].device
    features = [torch.linspace(-1, 1, encoder.in_channels, device=device).repeat(int(mask.sum()), 1) for mask in masks]

    def seconds(name: str) -> float:
        encoder.use(backends[name])
        began = _now(device)
        for mask, rows in zip(masks, features, strict=True):
            _forward_backward(encoder, SparseVolume(rows.requires_grad_(), Sites(mask)))
        return _now(device) - began

    backends = {name: make_backend(name) for name in names if why_not(name, device) is None}
    try:
        first = {name: seconds(name) for name in backends}
        close = [name for name in backends if first[name] <= max(1.0, 2 * min(first.values()))]
        taken: dict[str, list[float]] = {name: [] for name in close}
        began = time.perf_counter()
        for number in range(50):
            limit_s = budget_s if number >= least else 10 * budget_s
            if number and time.perf_counter() - began > limit_s:
                break
            for name in close:
                taken[name].append(seconds(name))
    finally:
        encoder.use(before)
    return {name: statistics.median(taken[name]) if name in taken else first[name] for name in backends}


def fastest(times: dict[str, float]) -> str:
    """Return the first backend that is within a few per cent of the fastest."""
    best = min(times.values(), default=math.inf)
    return next(name for name, seconds in times.items() if seconds <= (1 + TIE) * best)


def _forward_backward(encoder: SparseEncoder, volume: SparseVolume) -> None:
    total = torch.stack([scale.features.float().sum() for scale in encoder(volume)]).sum()
    torch.autograd.grad(total, [volume.features, *encoder.parameters()])


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
