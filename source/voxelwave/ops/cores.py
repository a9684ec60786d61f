"""How many cores and how much memory this process may use: what the machine has, cut by its control group."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def bound_cores() -> int:
    """Return the number of cores that the process is bound to."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_limit(cgroup: Path = CGROUP) -> float | None:
    """Return the cores' worth of time that the control group allows, of version 2 or 1; None where it sets no limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def available_cores() -> int:
    """Return how many threads or processes have a core each, 1 at least; a limit that is not whole is rounded up."""
    limit = core_limit()
    return bound_cores() if limit is None else max(1, min(bound_cores(), math.ceil(limit)))


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
