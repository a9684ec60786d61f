"""Small volumes of two anatomies: generated heads as brains, and phantoms of slices as something else."""

import numpy as np
import torch

from voxelwave.data.kspace.synthesis import synthesize_kspace
from voxelwave.data.kspace.writing import plain_header, write_fastmri
from voxelwave.ops.seeding import numpy_generator, torch_generator
from voxelwave.physics.heads3d import draw_head, render_mri
from voxelwave.physics.phantoms2d import draw_phantoms

SIDE, SLICES, COILS = 64, 2, 4


def brain(number):
    """Axial slices of a generated head."""
    generator = numpy_generator(number, "brain")
    head = render_mri(draw_head(generator, size=SIDE), generator, contrast="T1")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(head[..., [30, 36]], -1, 0)))


def phantom(number):
    """Two phantoms as one volume."""
    return draw_phantoms([torch_generator(number, "phantom", each) for each in range(SLICES)], size=SIDE)


def every(acceleration):
    """A mask of every so-manyth line and the centre."""
    lines = torch.arange(SIDE) % acceleration == SIDE // 2 % acceleration
    lines[SIDE // 2 - 3 : SIDE // 2 + 3] = True
    return lines


def write_volumes(folder, draw, numbers, sampled=None):
    """Write a file for each number, and return their places."""
    folder.mkdir(parents=True, exist_ok=True)
    places = []
    for number in numbers:
        kspace = synthesize_kspace(draw(number), num_coils=COILS, seed=number)
        places.append(folder / f"{number:03}.h5")
        write_fastmri(places[-1], kspace, plain_header(kspace), sampled)
    return places
