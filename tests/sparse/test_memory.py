"""What is prepared for a set of sites must go with it: a run has hundreds of thousands of steps."""

from itertools import pairwise

import psutil
import torch
from masks import blocks

from voxelwave.sparse.encoder import SparseEncoder
from voxelwave.sparse.volume import Sites, SparseVolume


@torch.no_grad()
def test_sites_leave_no_memory_behind(sparse_backend):
    encoder = SparseEncoder(4, widths=(4, 4), backend=sparse_backend)
    active = blocks((8, 8, 8), side=2, share=0.4, batch=2)
    features = torch.ones(int(active.sum()), 4)

    def resident_after(passes):
        for _ in range(passes):
            encoder(SparseVolume(features, Sites(active)))
        return psutil.Process().memory_info().rss

    resident = [resident_after(700), *(resident_after(500) for _ in range(3))]
    # MinkowskiEngine as it was published grows by .8 MB every time, an allocator that settles once.
    assert min(after - before for before, after in pairwise(resident)) < 0.3e6
