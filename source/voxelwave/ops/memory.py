"""How the process keeps its memory, and on how many threads it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

KEPT_BYTES = 31 << 20  # the most that glibc learns from


def keep_freed_memory() -> None:
    """Have the C library keep freed memory: where it gives it back, each page of the next tensor is faulted in anew.

    Page faults took half of the time of a crop, and a tenth to a third of that of a small training step.
    """
    # glibc learns from the largest block that was freed.
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: several add up in another order, and round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
