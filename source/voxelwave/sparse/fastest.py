"""Which backend computes an encoder fastest here: found by trying, since it depends on sizes, masks and the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from voxelwave.sparse.backends import NAMES, SparseBackend, make_backend, why_not
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.volume import Sites, SparseVolume

#: A backend that comes earlier among the names is kept where a later one is faster by less than this.
TIE = 0.05


class Trial(NamedTuple):
    """The seconds that a pass takes with each backend, and why others could not be tried."""

    seconds: dict[str, float]
    left_out: dict[str, str]

    def fastest(self) -> str:
        """Return the first backend that is within a few per cent of the fastest."""
        best = min(self.seconds.values())
        return next(name for name, seconds in self.seconds.items() if seconds <= (1 + TIE) * best)


def try_backends(
    encoder: SparseEncoder,
    masks: Sequence[Tensor],
    names: Sequence[str] = NAMES,
    *,
    budget_s: float = 1.0,
    least: int = 3,
) -> Trial:
    """Time a forward and backward pass with each backend that runs on the masks' device.

    A pass takes every one of the `masks` in turn, active sites `[batch, depth, height, width]` as a step would have.
    Backends take turns, so that a disturbance meets all alike: `least` rounds, more within `budget_s`, fewer where they
    would take ten times that. A backend that fails is left out; one whose first pass took more than a second and twice
    the time of another is not timed again. The encoder keeps the backend it had; no gradient is kept, no random number
    drawn. Raises RuntimeError where no backend runs.
    """
    before, device = encoder.backend, masks[0].device
    left_out = {name: reason for name in names if (reason := why_not(name, device))}
    backends = {name: make_backend(name) for name in names if name not in left_out}
    taken: dict[str, list[float]] = {name: [] for name in backends}
    first: dict[str, float] = {}

    def run(name: str) -> float:
        encoder.use(backends[name])
        return _seconds(encoder, masks)

    try:
        for name, backend in backends.items():
            try:
                _warm_up(encoder, backend, device)
                first[name] = run(name)
            except RuntimeError as error:  # out of memory, or a build that has no code for this GPU
                left_out[name] = next(iter(str(error).splitlines()), type(error).__name__)
        if not first:
            raise RuntimeError(f"no sparse backend runs on {device}: {left_out}")
        close = [name for name, seconds in first.items() if seconds <= max(1.0, 2 * min(first.values()))]
        began = time.perf_counter()
        for number in range(50):
            limit_s = budget_s if number >= least else 10 * budget_s
            if number and time.perf_counter() - began > limit_s:
                break
            for name in close:
                taken[name].append(run(name))
    finally:
        encoder.use(before)
    return Trial({name: statistics.median(taken[name] or [first[name]]) for name in first}, left_out)


def _warm_up(encoder: SparseEncoder, backend: SparseBackend, device: torch.device) -> None:
    """Let libraries load and threads start before anything is timed."""
    encoder.use(backend)
    _seconds(encoder, [torch.ones(1, 2, 2, 2, dtype=torch.bool, device=device)])


def _seconds(encoder: SparseEncoder, masks: Sequence[Tensor]) -> float:
    device = masks[0].device
    row = torch.linspace(-1, 1, encoder.in_channels, device=device)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    began = _now(device)
    for mask in masks:
        features = row.repeat(int(mask.sum()), 1).requires_grad_()
        with torch.enable_grad():
            scales = encoder(SparseVolume(features, Sites(mask)))
            total = torch.stack([scale.features.float().sum() for scale in scales]).sum()
        torch.autograd.grad(total, [features, *trained])
    return _now(device) - began


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
