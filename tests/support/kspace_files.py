"""Small volumes of k-space that the tests of files share."""

import torch

from voxelwave.data.kspace.synthesis import synthesize_kspace
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.phantoms2d import draw_phantoms

SLICES, COILS, ROWS, COLUMNS = 4, 3, 32, 24


def images(slices=SLICES, rows=ROWS, columns=COLUMNS):
    """Heads, [slices, rows, columns]."""
    drawn = draw_phantoms([torch_generator(5, number) for number in range(slices)], size=max(rows, columns))
    return drawn[:, :rows, :columns].contiguous()


def kspace(slices=SLICES, coils=COILS, rows=ROWS, columns=COLUMNS, **settings):
    """Their k-space."""
    return synthesize_kspace(images(slices, rows, columns), num_coils=coils, **settings)


def centre_and_every_fourth(columns=COLUMNS, centre=6):
    """A mask along the width."""
    sampled = torch.arange(columns) % 4 == 0
    sampled[columns // 2 - centre // 2 : columns // 2 + centre // 2] = True
    return sampled
