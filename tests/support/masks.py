"""Active sites in blocks, as masks make them."""

import torch


def blocks(grid, *, side, share, batch, seed=0):
    """Return `[batch, *grid]`: blocks of `side` sites, another `share` of them in each sample, one at least."""
    generator = torch.Generator().manual_seed(seed)
    cells = [-(-length // side) for length in grid]
    active = torch.rand(batch, *cells, generator=generator) < share
    for sample in active:
        sample.view(-1)[torch.randint(sample.numel(), (1,), generator=generator)] = True
    for axis in (1, 2, 3):
        active = active.repeat_interleave(side, axis)
    depth, height, width = grid
    return active[:, :depth, :height, :width].contiguous()
