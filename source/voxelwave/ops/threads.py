"""OpenMP's threads: how many, and how long they spin while they wait. It reads both once, when torch is imported."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

from voxelwave.ops.cores import bound_cores, core_limit

THREADS, SPIN = "OMP_NUM_THREADS", "GOMP_SPINCOUNT"
OURS = "VOXELWAVE_THREADS"  # the number where it is not the user's
# Turns of a thread that waits, after which it sleeps. Waking it costs a run that is alone its speed; on a busy machine
# the one that spins has the core of the one that is waited for.
QUIET_SPIN, BUSY_SPIN = 10_000, 200
LOOKS, BETWEEN_LOOKS_S = 9, 0.01
LOAD = Path("/proc/loadavg")


def set_up_threads(environment: dict[str, str] | os._Environ[str] = os.environ) -> str | None:
    """Set number and spinning where the user has not; return a line where the quota of a container cuts the number."""
    cores, limit = bound_cores(), core_limit()
    said = None
    if THREADS not in environment and limit is not None and limit < cores:
        # More threads than that would be stopped together for a part of every period.
        environment[THREADS] = environment[OURS] = str(max(1, int(limit)))
        said = f"{cores} cores, of which this container may use {limit:g}; threads: {environment[THREADS]}"
    if SPIN not in environment and "OMP_WAIT_POLICY" not in environment:
        given = environment.get(THREADS, "")
        own = int(given) if given.isdecimal() else cores
        busy = running_threads() + own > (os.cpu_count() or cores)
        environment[SPIN] = str(BUSY_SPIN if busy else QUIET_SPIN)
    return said


def share_threads(processes: int) -> int | None:
    """Part the threads that a quota left among processes that are about to start.

    Returns how many each has; None where there is no quota, or the user has set a number, which stays.
    """
    if (given := os.environ.get(OURS)) is None:
        return None
    share = max(1, int(given) // processes)
    os.environ[THREADS] = str(share)
    return share


def running_threads(load: Path = LOAD) -> float:
    """Return how many threads of other processes want a core now, the median of some looks; 0 where nothing tells."""
    found = []
    for _ in range(LOOKS):
        try:
            found.append(int(load.read_text().split()[3].split("/")[0]) - 1)
        except (OSError, ValueError, IndexError):
            return 0
        time.sleep(BETWEEN_LOOKS_S)
    return median(found)
