"""Spatial InfoNCE at 16³ positions, batch 2, forward and backward, against a loop over every (d, h, w).

python benchmarks/infonce_speed.py [--repeats 5]

Both loops are timed on a few anchors and scaled: what one more anchor costs, times the number of anchors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measuring import report, seconds
from voxelwave.losses.spatial_infonce import SpatialInfoNCE

SIDE, SMALL_SIDE, BATCH, DIM, TEMPERATURE = 16, 4, 2, 128, 0.07
BACKBONE_WIDTH = 768  # of the production backbone, in front of the projectors
FEW_ANCHORS, MORE_ANCHORS = 4, 16
PROCESSES = 5  # the C library's share of the memory differs from process to process by more than a factor of 2
Place = tuple[int, int, int]
AnchorLoss = Callable[[Tensor, Tensor, Iterable[Place]], Tensor]


def projections(side: int, width: int = DIM) -> tuple[Tensor, Tensor]:
    """Draw shallow and deep grids that take a gradient."""
    generator = torch.Generator().manual_seed(0)
    shallow, deep = (torch.randn(BATCH, width, side, side, side, generator=generator) for _ in range(2))
    return shallow.requires_grad_(), deep.requires_grad_()


def ours(width: int | None = None, chunk_size: int = 512) -> SpatialInfoNCE:
    """Build the loss of the package; without a width it takes projections as they are, like the loops."""
    loss = SpatialInfoNCE((width or DIM,) * 2, temperature=TEMPERATURE, projection_dim=DIM, chunk_size=chunk_size)
    if width is None:
        loss.shallow, loss.deep = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    return loss


def step(loss: SpatialInfoNCE, shallow: Tensor, deep: Tensor) -> Tensor:
    """Run forward and backward over all places."""
    shallow.grad = deep.grad = None
    value, _ = loss(shallow, deep, torch.ones(BATCH, *shallow.shape[2:], dtype=torch.bool))
    value.backward()
    return value.detach()


def plain_loop(shallow: Tensor, deep: Tensor, anchors: Iterable[Place]) -> Tensor:
    """Sum the losses of the anchors of one volume: in Python over positions, one product at a time.

    The grids are taken apart once. Indexing them in the loop would make every product's gradient a whole grid, and
    the loop slower by orders of magnitude.
    """
    rows, keys = _taken_apart(shallow), _taken_apart(deep)
    losses = []
    for d, h, w in anchors:
        anchor = rows[d, h, w]
        positive = anchor @ keys[d, h, w] / TEMPERATURE
        scores = [positive]
        for d2, h2, w2 in _places(shallow):
            if (d2, h2, w2) != (d, h, w):
                scores.append(anchor @ keys[d2, h2, w2] / TEMPERATURE)
        losses.append(torch.logsumexp(torch.stack(scores), 0) - positive)
    return torch.stack(losses).sum()


def loop_over_anchors(shallow: Tensor, deep: Tensor, anchors: Iterable[Place]) -> Tensor:
    """Sum the losses of the anchors of one volume: in Python over anchors, all their negatives in one product."""
    rows = _taken_apart(shallow)
    keys = F.normalize(deep, dim=0).flatten(1).T
    side = shallow.shape[1]
    losses = []
    for d, h, w in anchors:
        scores = keys @ rows[d, h, w] / TEMPERATURE
        losses.append(torch.logsumexp(scores, 0) - scores[(d * side + h) * side + w])
    return torch.stack(losses).sum()


def _taken_apart(grid: Tensor) -> dict[Place, Tensor]:
    flat = F.normalize(grid, dim=0).flatten(1).T
    return dict(zip(_places(grid), flat.unbind(), strict=True))


def _places(grid: Tensor) -> list[Place]:
    return list(itertools.product(*(range(side) for side in grid.shape[1:])))  # type: ignore[arg-type]


def scaled_seconds(anchor_loss: AnchorLoss) -> float:
    """Return the estimated duration over all anchors of the batch, from what one more anchor costs."""
    shallow, deep = projections(SIDE)

    def duration(num_anchors: int) -> float:
        spread = _places(shallow[0])[:: SIDE**3 // num_anchors][:num_anchors]
        return seconds(lambda: anchor_loss(shallow[0], deep[0], spread).backward(), repeats=3)

    each = (duration(MORE_ANCHORS) - duration(FEW_ANCHORS)) / (MORE_ANCHORS - FEW_ANCHORS)
    return each * BATCH * SIDE**3


def largest_difference() -> dict[str, float]:
    """Compare loss and gradients with the plain loop on a small grid, in one chunk and in several."""
    shallow, deep = projections(SMALL_SIDE)
    places = _places(shallow[0])
    expected = sum(plain_loop(shallow[i], deep[i], places) for i in range(BATCH)) / (BATCH * len(places))
    assert isinstance(expected, Tensor)
    gradients = torch.autograd.grad(expected, [shallow, deep])
    of_loss, of_gradient = [], []
    for chunk_size in (512, 24):
        of_loss.append(abs(float(step(ours(chunk_size=chunk_size), shallow, deep) - expected.detach())))
        of_gradient += [
            float((x.grad - g).abs().max())
            for x, g in zip((shallow, deep), gradients, strict=True)
            if x.grad is not None
        ]
    return {"loss": max(of_loss), "gradient": max(of_gradient)}


def peak_extra_mb(width: int | None, *, warm: bool, returning: bool = False) -> float:
    """Return how much one forward and backward raises the memory of a fresh process, at most in several.

    `returning` makes the C library give every freed tensor back at once. Otherwise it keeps those below a threshold
    that grows by itself, and the process holds several times what its tensors take.
    """
    command = [sys.executable, __file__, "--memory-of", str(width or 0), *(["--warm"] if warm else [])]
    settings = {"MALLOC_MMAP_THRESHOLD_": str(2**20)} if returning else {}
    peaks = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | settings)
        peaks.append(float(json.loads(done.stdout)["peak_extra_mb"]))
    return max(peaks)


def print_own_peak(width: int | None, *, warm: bool) -> None:
    """Print the peak of this process during one step over what it held just before.

    `warm` takes a step on a small grid before it: the first call of all makes torch load parts of itself, which a
    process that trains holds anyway.
    """
    torch.set_num_threads(2)
    if warm:
        step(ours(width, chunk_size=24), *projections(SMALL_SIDE, width or DIM))
    loss = ours(width)
    shallow, deep = projections(SIDE, width or DIM)
    # Makes the peak what is held now; what importing took at most does not hide the step's own.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mb("VmRSS")
    step(loss, shallow, deep)
    print(json.dumps({"peak_extra_mb": _status_mb("VmHWM") - before}))


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    """Measure speed, agreement and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--warm", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print_own_peak(arguments.memory_of or None, warm=arguments.warm)
        return
    torch.set_num_threads(2)
    loss, (shallow, deep) = ours(), projections(SIDE)
    began = time.perf_counter()
    duration = {
        "ours": seconds(lambda: step(loss, shallow, deep), arguments.repeats),
        "plain_loop_scaled": scaled_seconds(plain_loop),
        "loop_over_anchors_scaled": scaled_seconds(loop_over_anchors),
    }
    difference = largest_difference()
    widths = {"projections_alone": None, f"with_projectors_of_{BACKBONE_WIDTH}": BACKBONE_WIDTH}
    memory = {
        name: {
            "first_call_of_the_process": peak_extra_mb(width, warm=False),
            "after_a_call_on_a_small_grid": peak_extra_mb(width, warm=True),
            "after_a_call_on_a_small_grid_freed_memory_returned": peak_extra_mb(width, warm=True, returning=True),
        }
        for name, width in widths.items()
    }
    report(
        "infonce_speed",
        {
            "positions": SIDE**3,
            "batch": BATCH,
            "dim": DIM,
            "seconds": duration,
            "anchors_timed_for_the_loops": [FEW_ANCHORS, MORE_ANCHORS],
            "faster_than_plain_loop": duration["plain_loop_scaled"] / duration["ours"],
            "faster_than_loop_over_anchors": duration["loop_over_anchors_scaled"] / duration["ours"],
            "largest_difference_on_4x4x4": difference,
            "peak_extra_mb": memory,
            "full_logits_would_take_mb": BATCH * math.pow(SIDE, 6) * 4 / 2**20,
            "measured_for_s": time.perf_counter() - began,
            "targets": {"faster_than_plain_loop": 1000, "largest_difference_on_4x4x4": 1e-5, "peak_extra_mb": 256},
        },
    )


if __name__ == "__main__":
    main()
