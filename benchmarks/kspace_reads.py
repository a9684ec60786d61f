"""Thousands of slices of k-space read one after the other: whether what a process has in memory grows.

python benchmarks/kspace_reads.py [--reads 5000]

Files of each layout are written, and slices of them read in random order, with neighbours, masks and targets, as
training reads them. HDF5 libraries keep memory for every file that stays open, which the first tenth would not show.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from measuring import report
from memory import resident_mb
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.slices import KspaceSlices
from voxelwave.data.kspace.synthesis import synthesize_kspace
from voxelwave.data.kspace.writing import plain_header, write_challenge, write_fastmri, write_mrd
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.phantoms2d import draw_phantoms
from voxelwave.physics.samplings.equispaced import EquispacedLines

FILES, SLICES, COILS, SIDE = 12, 4, 8, 96


def write_files(folder: Path) -> list[KspaceFile]:
    """Write files of all three layouts."""
    drawn = draw_phantoms([torch_generator(0, number) for number in range(SLICES)], size=SIDE)
    sampled = EquispacedLines(offset="origin")((SIDE, SIDE), torch_generator(0))[0]
    for number in range(FILES):
        kspace = synthesize_kspace(drawn, num_coils=COILS, seed=number)
        if number % 3 == 0:
            write_fastmri(folder / f"fastmri{number}.h5", kspace, plain_header(kspace))
        elif number % 3 == 1:
            write_challenge(folder, f"challenge{number}.h5", kspace, sampled, size=(SIDE, SIDE))
        else:
            write_mrd(folder / f"mrd{number}.h5", kspace, plain_header(kspace))
    return [KspaceFile(path) for path in sorted(folder.rglob("*.h5")) if path.parent.name != "image"]


def main() -> None:
    """Read, and look at the memory ten times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", type=int, default=5000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files = write_files(Path(name))
        slices = KspaceSlices(files, EquispacedLines(offset=None), data_range="slice")
        order = torch.randint(len(slices), (arguments.reads,), generator=torch_generator(0, "order")).tolist()
        memory = []
        for number, index in enumerate(order, start=1):
            slices.set_epoch(number)
            slices[index]
            if number % (arguments.reads // 10) == 0:
                memory.append(round(resident_mb()[1], 1))
    report("kspace_reads", {"reads": arguments.reads, "own_memory_mb": memory, "growth_mb": memory[-1] - memory[0]})


if __name__ == "__main__":
    main()
