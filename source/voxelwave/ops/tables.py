"""Tables as CSV text."""

from __future__ import annotations

import csv
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelwave.errors import InputError
from voxelwave.ops.texts import read_text

MOST_MB = 512
CHECKSUM = "crc32"


def as_csv(
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    header: bool = True,
    line_end: str = "\n",
    checked: bool = False,
) -> str:
    """Return rows as lines of a CSV; None, NaN and what a row lacks are empty cells.

    A table that is `checked` has a last column with a checksum of each row, which `read_checked` compares.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator=line_end)
    if header:
        writer.writerow([*columns, CHECKSUM] if checked else columns)
    for row in rows:
        cells = [str(_cell(row.get(column))) for column in columns]
        writer.writerow([*cells, _checksum(cells)] if checked else cells)
    return table.getvalue()


def read_checked(
    path: Path, columns: Sequence[str], *, otherwise: str, text: str | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of the last line and the cells of each row of a table that `as_csv` wrote as `checked`.

    Tables that were written before there were checksums have none. A row that somebody edited is taken where its
    checksum is emptied.

    Args:
        otherwise: what is said of a table with other columns.
        text: that of the file, where it was read already.

    Raises InputError for other columns, and for a row that is not what was written.
    """
    lines = read_csv(path, text)
    header = next(lines, (0, []))[1]
    if header not in ([*columns], [*columns, CHECKSUM]):
        raise InputError(f"{path} {otherwise}")
    for line, cells in lines:
        *values, checksum = cells if len(header) > len(columns) else [*cells, ""]
        if len(values) != len(columns) or checksum not in ("", _checksum(values)):
            raise InputError(
                f"{path}, line {line}, is damaged, or was edited: restore it, or, where it is meant, empty its cell "
                f"'{CHECKSUM}'"
            )
        yield line, dict(zip(columns, values, strict=True))


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


def without_cut_line(content: bytes) -> bytes:
    """Leave out the start of a line that a killed writer left at the end; what else is there is damage, and stays."""
    end = b"\r\n" if b"\r\n" in content else b"\n"
    whole, _, tail = content.rpartition(end)
    within = whole.count(b'"') % 2  # a name with a line of its own
    unquoted = b"".join(tail.split(b'"')[within::2]).removesuffix(b"\r")
    if not tail or b"\n" in unquoted or b"\r" in unquoted:
        return content
    while whole.count(b'"') % 2:  # within a name with a line of its own, as older manifests have them
        whole = whole.rpartition(b"\n")[0]
    return whole


def _checksum(cells: Sequence[str]) -> str:
    return f"{zlib.crc32(json.dumps(cells).encode()):08x}"


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value
