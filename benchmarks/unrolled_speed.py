"""PromptMR+ with the recipe's numbers: one training step, beside the same multiplications in plain convolutions.

python benchmarks/unrolled_speed.py [--repeats 5] [--cascades 8]

Each way runs in a process for itself: the time of forward and of forward and backward, and the most that the process
has in memory, weights and torch included. The convolutions alone are there for their time; their inputs lie in memory
before.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from measuring import report, seconds
from memory import forget_peak, in_fresh_process, peak_mb
from voxelwave.unrolled.promptmr_plus import PromptMRPlus
from voxelwave.unrolled.sensitivity import SensitivityShape

COILS, SIDE, SLICES = 4, 96, 3
# "per_coil" computes the maps coil by coil; "saving" also checkpoints the cascades.
WAYS = ("plain", "per_coil", "saving", "convolutions")
# Of the original in another run on such a machine: what is wanted is to be faster and not heavier.
TARGETS = {"forward_s": 0.32, "step_s": 0.95, "peak_mb": 1000, "saving_step_s": 1.7, "saving_peak_mb": 750}


def network(way: str, cascades: int) -> PromptMRPlus:
    """Return the network as it is computed that way."""
    torch.manual_seed(0)
    return PromptMRPlus(
        num_cascades=cascades,
        sensitivity=replace(SensitivityShape(), per_coil=way in ("per_coil", "saving")),
        checkpointing=way == "saving",
    )


def kspace() -> tuple[Tensor, Tensor]:
    """Return noise, sampled at every fourth line and 8 in the centre."""
    lines = torch.arange(SIDE)
    sampled = (lines % 4 == 0) | ((lines - SIDE // 2).abs() <= 4)
    values = torch.randn(
        1, SLICES, COILS, SIDE, SIDE, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)
    )
    return values, sampled[None]


def convolution_inputs(model: PromptMRPlus) -> list[tuple[nn.Conv2d, tuple[int, ...]]]:
    """Return each convolution of one forward pass, with the shape of its input."""
    found: list[tuple[nn.Conv2d, tuple[int, ...]]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, tuple(inputs[0].shape)))

    hooks = [part.register_forward_pre_hook(note) for part in model.modules() if isinstance(part, nn.Conv2d)]
    with torch.no_grad():
        model(*kspace())
    for hook in hooks:
        hook.remove()
    return found


def plain_convolutions(cascades: int) -> Callable[[], Tensor]:
    """Return a call of all convolutions of the network by themselves, each on noise, and nothing between them."""
    inputs = [
        (part, torch.randn(shape, requires_grad=True)) for part, shape in convolution_inputs(network("plain", cascades))
    ]

    def call() -> Tensor:
        return torch.stack([part(values).mean() for part, values in inputs]).sum()

    return call


def measure(way: str, repeats: int, cascades: int) -> dict[str, float]:
    """Return seconds and memory of one way."""
    torch.set_num_threads(2)
    if way == "convolutions":
        call = plain_convolutions(cascades)
    else:
        model, (values, sampled) = network(way, cascades), kspace()

        def call() -> Tensor:
            image: Tensor = model(values, sampled)
            return image.square().mean()

    forget_peak()
    with torch.no_grad():
        forward = seconds(call, repeats)
    forward_peak = peak_mb()
    step = seconds(lambda: call().backward(), repeats)
    return {"forward_s": forward, "step_s": step, "forward_peak_mb": forward_peak, "peak_mb": peak_mb()}


def main() -> None:
    """Measure every way in a fresh process, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cascades", type=int, default=8)
    parser.add_argument("--task", choices=WAYS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(arguments.task, arguments.repeats, arguments.cascades)))
        return
    options = ("--repeats", arguments.repeats, "--cascades", arguments.cascades)
    report(
        "unrolled_speed",
        {
            "input": {"coils": COILS, "side": SIDE, "slices": SLICES, "cascades": arguments.cascades},
            "ways": {way: in_fresh_process(__file__, way, *options) for way in WAYS},
            "targets": TARGETS,
        },
    )


if __name__ == "__main__":
    main()
