"""How many cores this process may use: those that it is bound to, cut by the quota of its control group."""

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
