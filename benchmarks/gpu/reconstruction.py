"""PromptMR+ with the recipe's numbers: a training step, a reconstruction, what determinism costs; SENSE on a batch.

python benchmarks/gpu/reconstruction.py OUT.json [--tiny]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from voxelwave.engine.determinism import deterministic_algorithms
from voxelwave.engine.optimizer import OffloadedAdamW
from voxelwave.physics.acquisition import expand
from voxelwave.physics.coil_maps import birdcage_maps
from voxelwave.physics.fourier import fft2c
from voxelwave.unrolled.promptmr_plus import PromptMRPlus
from voxelwave.unrolled.sense import Sense

SLICES, REPEATS = 3, 7


def duration_s(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median time of a call that is complete, after one that warms up."""
    durations = []
    for number in range(1 + repeats):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def peak_mb(device: torch.device) -> float | None:
    """Return the most of the card's memory that was taken since the last call, None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return peak


def kspace(coils: int, size: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise, sampled at every fourth line and 8 % in the centre."""
    lines = torch.arange(size[1], device=device)
    sampled = ((lines % 4 == 0) | ((lines - size[1] // 2).abs() <= size[1] * 0.04))[None]
    return torch.randn(1, SLICES, coils, *size, dtype=torch.complex64, device=device) * sampled, sampled


def measured(coils: int, size: tuple[int, int], cascades: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Measure a step that fits into 8 GB, and a reconstruction."""
    torch.manual_seed(0)
    network = PromptMRPlus(num_cascades=cascades, checkpointing=True)
    optimizer = OffloadedAdamW(network.parameters(), lr=1e-4)
    network.to(device)
    values, sampled = kspace(coils, size, device)

    def step() -> None:
        network(values, sampled).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def reconstruct() -> None:
        with torch.no_grad():
            network(values, sampled)

    peak_mb(device)
    found: dict[str, Any] = {"step_s": duration_s(step, device, repeats), "step_peak_mb": peak_mb(device)}
    found |= {"reconstruction_s": duration_s(reconstruct, device, repeats), "reconstruction_peak_mb": peak_mb(device)}
    with deterministic_algorithms():
        found["deterministic_step_s"] = duration_s(step, device, repeats)
    return found


def sense(side: int, batch: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Time SENSE of a batch of slices with 8 coils."""
    maps = birdcage_maps(8, (side, side))
    image = torch.randn(batch, side, side, dtype=torch.complex64)
    lines = torch.arange(side)
    sampled = ((lines % 4 == 0) | ((lines - side // 2).abs() <= side * 0.04)).expand(batch, -1).to(device)
    values = fft2c(expand(image, maps))[:, None].to(device)
    return {"batch": batch, "duration_s": duration_s(lambda: Sense()(values, sampled), device, repeats)}


def main() -> None:
    """Measure, and write what was found after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures: dict[str, Any] = {}
    parts: dict[str, Callable[[], Any]] = {
        "4 coils, 96×96": lambda: measured(4, (96, 96), 8, device, REPEATS),
        "15 coils, 416×368": lambda: measured(15, (416, 368), 8, device, REPEATS),
        "15 coils, 640×368": lambda: measured(15, (640, 368), 8, device, REPEATS),
        "SENSE": lambda: sense(320, 16, device, REPEATS),
    }
    if arguments.tiny:
        parts = {
            "2 coils, 16×16": lambda: measured(2, (16, 16), 1, device, 1),
            "SENSE": lambda: sense(16, 2, device, 1),
        }
    for name, part in parts.items():
        figures[name] = part()
        arguments.out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
