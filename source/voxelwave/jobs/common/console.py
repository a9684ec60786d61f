"""The terminal: lines that are printed as they are, tables as wide as they need, progress beside both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
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


_shown: list[Progress] = []  # the one that is on the terminal: rich shows no second


@contextmanager
def progress_of(what: str, *, total: int | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar on stderr that is gone at the end, below one that is shown already.

    Yields what is called with how much is done, and of how much.
    """
    console = rich.console.Console(stderr=True)
    outer = _shown[0] if _shown else Progress(*Progress.get_default_columns(), console=console, transient=True)
    with nullcontext() if _shown else outer:
        _shown.append(outer)
        task = outer.add_task(what, total=total)
        try:
            yield lambda done, of: outer.update(task, completed=done, total=of)
        finally:
            outer.remove_task(task)
            _shown.pop()


def tracked(items: Iterable[ItemT], what: str, *, total: int | None = None) -> Iterator[ItemT]:
    """Yield items, with a progress bar on stderr that is gone at the end."""
    number = len(items) if total is None and isinstance(items, Sized) else total
    with progress_of(what, total=number) as done:
        for count, item in enumerate(items, start=1):
            yield item
            done(count, number)
