"""The backends of the sparse encoder against each other: time, memory, what auto takes, and resident memory over steps.

python benchmarks/sparse_speed.py [--rounds 3] [--steps 1000] [--quick]

Needs MinkowskiEngine (`make minkowski`). Times are medians of forward and backward passes that go round by turns; every
pass finds out anew which sites are neighbours, as a training step has to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import conv_ways
from measuring import RESULTS, seconds
from memory import forget_peak, in_fresh_process, peak_mb, resident_mb
from reporting import publish, table, trend
from voxelwave.sparse.backends import NAMES, make_backend
from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.fastest import try_backends
from voxelwave.sparse.volume import Sites, SparseVolume

BATCH = 2


class Case(NamedTuple):
    """An encoder, and the masks that it meets."""

    name: str
    channels: int
    widths: tuple[int, ...]
    grid: int
    side: int
    share: float
    #: How many times faster than dense minkowski and gather are to be.
    wanted: tuple[float, float] | None = None

    def mask(self, seed: int = 0) -> Tensor:
        """Draw `share` of the blocks of `side` sites, as many in each sample."""
        cells = self.grid // self.side
        order = torch.rand(BATCH, cells**3, generator=torch.Generator().manual_seed(seed)).argsort(1)
        active = (order < round(self.share * cells**3)).unflatten(1, (cells,) * 3)
        for axis in (1, 2, 3):
            active = active.repeat_interleave(self.side, axis)
        return active


WIDE, PRODUCTION, SUBSET = (768, 768, 768), (384, 512, 640), (128, 192, 256)
CASES = [
    Case("768 wide, 40 %", 768, WIDE, 16, 4, 0.4, (2.5, 2.0)),
    Case("768 wide, 10 %", 768, WIDE, 16, 4, 0.1, (10.0, 6.0)),
    Case("production", 768, PRODUCTION, 16, 4, 0.4),
    Case("production, blocks of 2", 768, PRODUCTION, 16, 2, 0.4),
    Case("production, 8³", 768, PRODUCTION, 8, 2, 0.4),
    Case("production, all active", 768, PRODUCTION, 8, 1, 1.0),
    Case("subset widths, 16³", 128, SUBSET, 16, 4, 0.4),
    Case("demo", 96, SUBSET, 12, 4, 0.4),
    Case("subset", 128, SUBSET, 8, 2, 0.4),
    Case("subset, single sites", 128, SUBSET, 8, 1, 0.4),
    Case("subset, all active", 128, SUBSET, 8, 1, 1.0),
    Case("narrow, 4³", 32, (32, 48), 4, 1, 0.4),
    Case("narrow, 16³", 32, (32, 48), 16, 4, 0.4),
]


def compare(case: Case, rounds: int) -> dict[str, Any]:
    """Let auto choose, then time all backends at length: how much slower than the best is its choice?"""
    torch.manual_seed(0)
    encoder = SparseEncoder(case.channels, widths=case.widths)
    chosen = try_backends(encoder, [case.mask(0)]).fastest()
    # Nothing is left out of this measurement, however slow.
    samples: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(rounds):
        for name in NAMES:
            taken = try_backends(encoder, [case.mask(1 + number)], [name], budget_s=0.2, least=1).seconds
            samples[name].append(taken[name])
    times = {name: sorted(taken)[len(taken) // 2] for name, taken in samples.items()}
    return {
        "seconds": times,
        "over_dense": {name: times["dense"] / times[name] for name in NAMES},
        "wanted_over_dense": dict(zip(("minkowski", "gather"), case.wanted or (), strict=False)),
        "auto": chosen,
        "auto_over_best": times[chosen] / min(times.values()),
        "active_sites": int(case.mask(0).sum()),
    }


def compare_ways(case: Case, rounds: int) -> dict[str, float]:
    """Time one convolution in every way: the three backends, and what gather could have been."""
    torch.manual_seed(0)
    active = case.mask()
    width = case.channels
    weight = (0.02 * torch.randn(3, 3, 3, width, width)).permute(4, 3, 0, 1, 2).requires_grad_()
    bias = torch.zeros(width, requires_grad=True)
    features = torch.randn(int(active.sum()), width, requires_grad=True)
    plain = weight.detach().contiguous().requires_grad_()
    grid = torch.randn(BATCH, width, *(case.grid,) * 3, requires_grad=True)

    def by(call: Callable[[SparseVolume, Tensor, Tensor], Any]) -> None:
        result = call(SparseVolume(features, Sites(active)), weight, bias)
        rows = result.features if isinstance(result, SparseVolume) else result
        torch.autograd.grad(rows, (features, weight, bias), torch.ones_like(rows))

    def conv3d() -> None:
        out = torch.nn.functional.conv3d(grid, plain, bias, padding=1)
        torch.autograd.grad(out, (grid, plain, bias), torch.ones_like(out))

    ways: dict[str, Callable[[], None]] = {name: partial(by, make_backend(name).convolve) for name in NAMES}
    ways["halo"] = partial(by, partial(conv_ways.halo, side=case.side))
    ways["table"] = partial(by, conv_ways.table)
    ways["pairs by autograd"] = partial(by, conv_ways.pairs_by_autograd)
    ways["conv3d of the whole grid"] = conv3d
    expected = make_backend("dense").convolve(SparseVolume(features, Sites(active)), weight, bias).features
    for other in (partial(conv_ways.halo, side=case.side), conv_ways.table, conv_ways.pairs_by_autograd):
        torch.testing.assert_close(
            other(SparseVolume(features, Sites(active)), weight, bias), expected, rtol=1e-4, atol=1e-4
        )
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            taken = seconds(way, repeats=1, warm_up=0)
            if number:
                samples[name].append(taken)
    return {name: sorted(taken)[len(taken) // 2] for name, taken in samples.items()}


def step(encoder: SparseEncoder, active: Tensor) -> None:
    """One pass with gradients that are kept, as in training."""
    encoder.zero_grad()
    features = torch.ones(int(active.sum()), encoder.in_channels, requires_grad=True)
    scales = encoder(SparseVolume(features, Sites(active)))
    torch.stack([scale.features.sum() for scale in scales]).sum().backward()


def memory_of(name: str, number: str) -> dict[str, float]:
    """Return by how much a step raises the memory of a process that holds the weights, and what the gradients are."""
    case = CASES[int(number)]
    encoder = SparseEncoder(case.channels, widths=case.widths, backend=name)
    step(encoder, torch.ones(1, 2, 2, 2, dtype=torch.bool))
    encoder.zero_grad()
    before, _ = resident_mb()
    forget_peak()
    for seed in range(3):
        step(encoder, case.mask(seed))
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
    return {"extra_mb": peak_mb() - before, "gradients_mb": gradients / 2**20}


def memory_by_backend(number: int) -> dict[str, float]:
    """Ask a fresh process for each backend."""
    answers = {name: in_fresh_process(__file__, "memory", name, number) for name in NAMES}
    return {name: answer["extra_mb"] for name, answer in answers.items()} | {
        "gradients": answers["dense"]["gradients_mb"]
    }


def resident_over(name: str, steps: str) -> dict[str, float]:
    """Return the trend of the resident memory over steps with other masks each, after the first fifth of them."""
    case = next(case for case in CASES if case.name == "subset widths, 16³")
    encoder = SparseEncoder(case.channels, widths=case.widths, backend=name)
    at, kb = [], []
    for number in range(int(steps)):
        step(encoder, case.mask(number))
        if number >= int(steps) // 5 and number % 10 == 0:
            at.append(number)
            kb.append(resident_mb()[0] * 1024)
    slope, error = trend(at, kb)
    return {"kb_a_step": slope, "error": error, "first_mb": kb[0] / 1024, "last_mb": kb[-1] / 1024}


def draw(cases: dict[str, Any]) -> None:
    """Draw how many times faster than dense each backend is."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for shift, (name, colour) in enumerate({"gather": "#1f77b4", "minkowski": "#2ca02c"}.items()):
        places = [number + 0.36 * shift - 0.18 for number in range(len(cases))]
        axes.barh(places, [case["over_dense"][name] for case in cases.values()], 0.34, color=colour, label=name)
    axes.set_yticks(range(len(cases)), list(cases))
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times as fast as dense, forward + backward of the encoder, two threads")
    axes.legend(loc="lower right")
    figure.savefig(RESULTS / "sparse_speed.png", dpi=120)


def write(figures: dict[str, Any]) -> str:
    """Write the figures as tables."""
    speed = [
        [
            name,
            case["active_sites"],
            *(f"{1000 * case['seconds'][backend]:.3g}" for backend in NAMES),
            *(
                f"{case['over_dense'][backend]:.2f}"
                + (f" (≥ {case['wanted_over_dense'][backend]:g})" if backend in case["wanted_over_dense"] else "")
                for backend in ("gather", "minkowski")
            ),
            case["auto"],
            f"{case['auto_over_best']:.2f}",
        ]
        for name, case in figures["cases"].items()
    ]
    ways = [
        [way, *(f"{1000 * times[way]:.3g}" for times in figures["ways"].values())]
        for way in next(iter(figures["ways"].values()))
    ]
    memory = [
        [name, *(f"{values[name]:.0f}" for values in figures["extra_mb"].values())] for name in (*NAMES, "gradients")
    ]
    resident = [
        [name, f"{r['kb_a_step']:.3f} ± {r['error']:.3f}", f"{r['first_mb']:.0f}", f"{r['last_mb']:.0f}"]
        for name, r in figures["resident"].items()
    ]
    parts = [
        "Forward and backward of the encoder, batch 2, ms; last, how much longer than the best auto's choice takes.",
        table(
            "case | sites | gather | minkowski | dense | gather over dense | minkowski over dense | auto | auto / best",
            speed,
        ),
        "![times as fast as dense](sparse_speed.png)",
        "One convolution, forward and backward, ms.",
        table("way | " + " | ".join(figures["ways"]), ways),
        "What a step adds to the resident memory at its peak, MB; the gradients of the weights are the last row of it.",
        table("backend | " + " | ".join(figures["extra_mb"]), memory),
        f"Resident memory over {figures['steps']} steps with other masks each, after the first fifth.",
        table("backend | kB a step | first, MB | last, MB", resident),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Run all parts, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.task:
        task, *values = arguments.task
        print(json.dumps({"memory": memory_of, "resident": resident_over}[task](*values)))
        return
    quick = arguments.quick
    rounds, steps = (1, 50) if quick else (arguments.rounds, arguments.steps)
    chosen = CASES[6:] if quick else CASES
    figures: dict[str, Any] = {"rounds": rounds, "steps": steps}
    figures["cases"] = {case.name: compare(case, rounds) for case in chosen}
    figures["worst_auto_over_best"] = max(case["auto_over_best"] for case in figures["cases"].values())
    figures["ways"] = {
        case.name: compare_ways(case, rounds) for case in (chosen[:1] if quick else CASES[:2] + CASES[6:7])
    }
    figures["extra_mb"] = {
        case.name: memory_by_backend(CASES.index(case)) for case in (chosen[:1] if quick else CASES[:3])
    }
    figures["resident"] = {name: in_fresh_process(__file__, "resident", name, steps) for name in NAMES}
    if not quick:
        draw(figures["cases"])
    publish("sparse_speed", figures, write(figures), quick=quick)


if __name__ == "__main__":
    main()
