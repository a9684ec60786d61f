"""The router on files of a real size: what training takes, and whether volumes that it has not seen are told apart.

python benchmarks/router_time.py [--threads 2]

Four kinds of images stand for anatomies: generated heads cut axially and sagittally, phantoms, and two legs side by
side. Each volume has 320 × 320 pixels, 15 coils and 6 slices. Held-out volumes are given to the router whole and
undersampled, under names that were shuffled over all of them.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from measuring import report
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.synthesis import synthesize_kspace
from voxelwave.data.kspace.writing import plain_header, write_fastmri
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.router.config import check_router_config
from voxelwave.jobs.reconstruct.router.training import anatomy_of, load_router, train_router_from
from voxelwave.ops.seeding import numpy_generator, torch_generator
from voxelwave.physics.heads3d import draw_head, render_mri
from voxelwave.physics.phantoms2d import draw_phantoms

SIDE, SLICES, COILS, HEAD = 320, 6, 15, 96
TRAINED, HELD_OUT = 8, 4
LIMIT_S = 300
RATES = (1, 4, 8)  # 1 is whole


def _head(number: int, axis: int) -> Tensor:
    generator = numpy_generator(number, "head", axis)
    head = render_mri(draw_head(generator, size=HEAD), generator, contrast="T1")
    middle = np.moveaxis(head, axis, 0)[HEAD // 2 - SLICES // 2 :][:SLICES]
    return F.interpolate(torch.from_numpy(np.ascontiguousarray(middle))[None].float(), size=(SIDE, SIDE))[0]


def _legs(number: int) -> Tensor:
    generator = torch_generator(number, "legs")
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    image = torch.zeros(SIDE, SIDE)
    for side in (-1, 1):
        radius, shift = 0.3 + 0.1 * torch.rand((), generator=generator), 0.1 * torch.rand(2, generator=generator)
        distance = ((rows - shift[0]) ** 2 + (columns - side * 0.45 - shift[1]) ** 2).sqrt()
        image += (distance < radius) * 0.4 + (distance < 0.9 * radius) * 0.3 - (distance < 0.3 * radius) * 0.5
    return torch.stack([image * (1 - 0.02 * number_of) for number_of in range(SLICES)]).clamp_min(0)


KINDS = {
    "axial head": lambda number: _head(number, 2),
    "sagittal head": lambda number: _head(number, 0),
    "phantom": lambda number: draw_phantoms(
        [torch_generator(number, "phantom", one) for one in range(SLICES)], size=SIDE
    ),
    "legs": _legs,
}


def every(rate: int) -> Tensor | None:
    """Return a mask of every so-manyth line and the centre; None for all of them."""
    if rate == 1:
        return None
    lines = torch.arange(SIDE)
    return (lines % rate == SIDE // 2 % rate) | ((lines - SIDE // 2).abs() < 13)


def write(folder: Path, kind: str, numbers: range, rate: int = 1) -> list[Path]:
    """Write volumes of a kind, and return their places."""
    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / f"{number:03}.h5" for number in numbers]
    for number, place in zip(numbers, places, strict=True):
        kspace = synthesize_kspace(KINDS[kind](number), num_coils=COILS, seed=number)
        write_fastmri(place, kspace, plain_header(kspace), every(rate))
    return places


def main() -> None:
    """Make files, train on some of them, and ask for the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    with tempfile.TemporaryDirectory() as name:
        folder, told = Path(name), {str(rate): 0 for rate in RATES}
        for kind in KINDS:
            write(folder / kind, kind, range(TRAINED))
        config = check_router_config(
            {
                "run": {"out_dir": name, "tensorboard": False},
                "data": {"anatomies": {kind: str(folder / kind) for kind in KINDS}},
                "training": {"device": "cpu"},
            }
        )
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        train_router_from(config, console=Console(quiet=True))
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        router = load_router(config.run_folder())
        for rate in RATES:
            made: dict[Path, str] = {}
            for kind in KINDS:
                made |= dict.fromkeys(write(folder / f"held_out {kind}", kind, range(100, 100 + HELD_OUT), rate), kind)
            order = torch.randperm(len(made), generator=torch_generator(rate, "names")).tolist()
            for (place, kind), number in zip(made.items(), order, strict=True):
                renamed = folder / f"file{number}.h5"
                place.replace(renamed)
                told[str(rate)] += anatomy_of(router, KspaceFile(renamed))[0] == kind
                renamed.unlink()
    report(
        "router_time",
        {
            "volumes": TRAINED * len(KINDS),
            "size": [SIDE, SIDE],
            "coils": COILS,
            "training": {"wall_s": round(wall_s, 1), "cpu_s": round(cpu_s, 1), "limit_s": LIMIT_S},
            "held_out_told_right_by_rate": {
                rate: f"{right} of {HELD_OUT * len(KINDS)}" for rate, right in told.items()
            },
        },
    )


if __name__ == "__main__":
    main()
