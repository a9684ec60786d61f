"""Tables as CSV text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
