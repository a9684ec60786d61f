"""Runs that are interrupted."""

from collections.abc import Callable


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a `should_stop` that says yes after so many steps."""
    taken = iter(range(1, 10**6))
    return lambda: next(taken) == steps
