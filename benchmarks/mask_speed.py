"""Drawing the masks of a batch of 8 at 16³ tokens.

python benchmarks/mask_speed.py [--repeats 200]
"""

from __future__ import annotations

import argparse

import torch

from measuring import report, seconds
from voxelwave.masking.mim import MiMMasking

GRID, BATCH = (16, 16, 16), 8
# Also grids that blocks do not tile, which take a second sort.
OTHER_GRIDS = ((8, 8, 8), (20, 24, 16), (15, 17, 19))
TARGET_MS = 2


def milliseconds(grid: tuple[int, int, int], repeats: int) -> float:
    """Return the median duration of drawing one batch of masks."""
    masking, generator = MiMMasking(), torch.Generator().manual_seed(0)
    return 1e3 * seconds(lambda: masking(grid, BATCH, generator), repeats, warm_up=5)


def main() -> None:
    """Measure the stated grid, and others beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(2)
    report(
        "mask_speed",
        {
            "batch": BATCH,
            "median_ms": milliseconds(GRID, repeats),
            "other_grids_ms": {"x".join(map(str, grid)): milliseconds(grid, repeats) for grid in OTHER_GRIDS},
            "targets": {"median_ms": TARGET_MS},
        },
    )


if __name__ == "__main__":
    main()
