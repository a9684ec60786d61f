"""How a job ended, and the exit code that says so."""

from __future__ import annotations

from dataclasses import dataclass

STOPPED = 130  # as of a shell after Ctrl-C: what was to follow must not go on with half a run


@dataclass(frozen=True)
class Outcome:
    """Whether a job came to its end, and how many of its files could not be used."""

    complete: bool = True
    unusable: int = 0

    @property
    def exit_code(self) -> int:
        """130 where the job was stopped and the same command goes on, 1 where files could not be used, else 0."""
        return STOPPED if not self.complete else int(self.unusable > 0)
