"""Tables as CSV text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelwave.errors import InputError
from voxelwave.ops.texts import read_text

MOST_MB = 512


def as_csv(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, header: bool = True, line_end: str = "\n"
) -> str:
    """Return rows as lines of a CSV; None, NaN and what a row lacks are empty cells."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator=line_end)
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return table.getvalue()


def read_csv(path: Path, text: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the cells of each row, the header first, blank rows left out.

    `text` is that of the file, where it was read already.

    Raises InputError for a file that is no CSV text in UTF-8, or has a cell of more than 131,072 characters.
    """
    try:
        lines = csv.reader(io.StringIO(read_text(path, most_mb=MOST_MB) if text is None else text, newline=""))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a CSV text in UTF-8: {error}") from None
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {lines.line_num}, cannot be read as CSV: {error}") from None
        if cells is None:
            return
        if cells:
            yield lines.line_num, cells


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
