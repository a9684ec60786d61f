"""Where the time of a call goes, without a change to what is called."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Steps:
    """Seconds by step; what a step calls of another step counts for that alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call` with its time taken."""

        def with_time(*arguments: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                taken = time.perf_counter() - began
                self.seconds[step] += taken - self._inner.pop()
                self._inner[-1] += taken

        return with_time
