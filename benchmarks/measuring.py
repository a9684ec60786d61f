"""What the benchmarks share: medians of repeated calls, the machine's matmul rate, and where results go."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from voxelwave.engine.signals import STOPPED

RESULTS = Path(__file__).parent / "results"


def seconds(call: Callable[[], object], repeats: int = 5, warm_up: int = 1) -> float:
    """Return the median duration of a call."""
    for _ in range(warm_up):
        call()
    durations = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def medians_in_turn(
    ways: Mapping[str, Callable[[int], object]], rounds: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median time of each way; all of them take turns, so that a slow minute of the machine meets all.

    A way is given the number of its round, and the first one warms up.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = clock()
            way(number)
            if number:
                taken[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def matmul_rate(side: int = 2048) -> float:
    """Return the machine's fp32 rate in multiply-adds × 2 a second, on square matrices, best of several."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / min(seconds(lambda: a @ b, repeats=1, warm_up=0) for _ in range(10))


def ended(complete: bool) -> None:
    """Stop where a job was stopped, whose signals do not end the process: half a run is not measured as a whole one."""
    if not complete:
        raise SystemExit(STOPPED)


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the figures and write them to `results/<name>.json`, with what they were measured on."""
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.machine(),
    }
    text = json.dumps({**figures, "measured_on": machine}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(f"{name}: {text}")
