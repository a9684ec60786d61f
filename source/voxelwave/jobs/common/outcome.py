"""How a job ended, and the exit code that says so."""

from __future__ import annotations

from dataclasses import dataclass

from voxelwave.engine.signals import STOPPED


@dataclass(frozen=True)
class Outcome:
    """Whether a job came to its end, and how many of its files could not be used.

    `when_stopped` is the exit code of one that did not.
    """

    complete: bool = True
    unusable: int = 0
    when_stopped: int = STOPPED

    @property
    def exit_code(self) -> int:
        """130 where the job was stopped and the same command goes on, 1 where files could not be used, else 0."""
        return self.when_stopped if not self.complete else int(self.unusable > 0)
