"""How much memory this process may use: what the machine has, cut by the limit of its control group."""

from __future__ import annotations

import os
from pathlib import Path

from voxelwave.ops.cores import CGROUP


def machine_memory() -> int:
    """Return the bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit(cgroup: Path = CGROUP) -> int | None:
    """Return the bytes that the control group allows, by version 2 or 1, None where it sets no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((cgroup / name).read_text())
        except (OSError, ValueError):
            continue
    return None


def usable_memory() -> int:
    """Return the bytes that this process and all others beside it may use."""
    limit = memory_limit()
    return machine_memory() if limit is None else min(limit, machine_memory())
