"""The terminal: lines that are printed as they are, tables as wide as they need, progress beside both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import rich.console
from rich.progress import Progress
from rich.text import Text

from voxelwave.ops.loggers import printable

WIDE = 180  # columns: a file or a pipe has no edge
ItemT = TypeVar("ItemT")


class Console(rich.console.Console):
    """A console of rich; where it is no terminal and nothing is said of its width, lines are wide.

    Every text is one line: names of files can hold what moves a cursor or begins a line.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if not self.is_terminal and "width" not in settings:
            self.width = max(self.width, WIDE)

    def render_str(self, text: str, **how: Any) -> Text:
        """Return `text`, a line, the title or a cell of a table, as rich shows it; it has no control characters."""
        return super().render_str(printable(text), **how)

    def say(self, *lines: str) -> None:
        """Print lines unbroken: what stands in brackets is no markup, and numbers have no colour."""
        for line in lines:
            self.print(line, markup=False, highlight=False, soft_wrap=True)


def tracked(items: Iterable[ItemT], what: str, *, total: int | None = None) -> Iterator[ItemT]:
    """Yield items, with a progress bar on stderr that is gone at the end."""
    console = rich.console.Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=what)
