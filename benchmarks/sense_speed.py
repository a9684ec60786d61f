"""SENSE of a batch of slices by conjugate gradients: ours, all at once, and sigpy's, one after the other.

python benchmarks/sense_speed.py [--batch 16] [--coils 8] [--sides 128 256]

Both have the same maps, samples and iterations, and one thread or as many as are asked for. Calls take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from sigpy.mri.app import SenseRecon

from measuring import report
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import expand
from voxelwave.physics.coil_maps import birdcage_maps
from voxelwave.physics.fourier import fft2c
from voxelwave.physics.phantoms2d import draw_phantoms
from voxelwave.unrolled.sense import solve_sense

ITERATIONS, REGULARISATION, ROUNDS = 30, 1e-3, 5


def compared(batch: int, coils: int, side: int) -> dict[str, Any]:
    """Return the medians of both, and how far apart their images are."""
    images = draw_phantoms([torch_generator(number) for number in range(batch)], size=side).to(torch.complex64)
    maps = birdcage_maps(coils, (side, side))
    maps = maps / torch.linalg.vector_norm(maps, dim=0).clamp_min(1e-6)
    lines = torch.arange(side)
    sampled = (lines % 4 == side // 2 % 4) | ((lines - side // 2).abs() <= side * 0.04)
    kspace = fft2c(expand(images, maps)) * sampled
    weights = sampled.float().expand(side, -1).numpy()

    @torch.no_grad()
    def ours() -> np.ndarray:
        return solve_sense(
            kspace,
            maps.expand(batch, -1, -1, -1),
            sampled.expand(batch, -1),
            regularisation=REGULARISATION,
            iterations=ITERATIONS,
            tolerance=0,
        ).numpy()

    def sigpys() -> np.ndarray:
        options = {"lamda": REGULARISATION, "weights": weights, "max_iter": ITERATIONS, "show_pbar": False}
        return np.stack([SenseRecon(one.numpy(), maps.numpy(), **options).run() for one in kspace])

    durations: dict[str, list[float]] = {"ours_s": [], "sigpy_s": []}
    found = {}
    for _ in range(ROUNDS):
        for name, call in (("ours_s", ours), ("sigpy_s", sigpys)):
            began = time.perf_counter()
            found[name] = call()
            durations[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(of[1:]) for name, of in durations.items()}
    apart = np.linalg.norm(found["ours_s"] - found["sigpy_s"]) / np.linalg.norm(found["sigpy_s"])
    return {**medians, "sigpy_over_ours": medians["sigpy_s"] / medians["ours_s"], "relative_difference": float(apart)}


def main() -> None:
    """Compare at each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--coils", type=int, default=8)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256])
    arguments = parser.parse_args()
    sides = {str(side): compared(arguments.batch, arguments.coils, side) for side in arguments.sides}
    report("sense_speed", {"batch": arguments.batch, "coils": arguments.coils, "iterations": ITERATIONS, **sides})


if __name__ == "__main__":
    main()
