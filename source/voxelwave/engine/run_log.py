"""What a run writes while it trains: one line a step, one row an epoch, TensorBoard, and progress on the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from voxelwave.engine.event_file import EventFile
from voxelwave.errors import InputError
from voxelwave.ops.files import naming, write_text
from voxelwave.ops.tables import as_csv
from voxelwave.ops.texts import from_json

Record = dict[str, Any]
METRICS = "metrics.jsonl"
MEASURED = "validation_"  # begins the names of what only some steps have
LARGEST = 1e300
SPEED = "_per_second"  # ends the name of how many samples were trained on
WAITED = "data_wait_s"


def read_metrics(path: Path) -> list[Record]:
    """Read `metrics.jsonl`; a last line that was cut while being written is left out.

    Raises InputError for any other line that is damaged.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(line))
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise InputError(f"{path}, line {number}, is damaged: restore the file from a copy") from None
    return records


def _record(line: str) -> Record:
    """Parse a line; raises ValueError, KeyError or TypeError for one that a step cannot have left."""
    record = dict(from_json(line))
    step, epoch, modality = record["step"], record["epoch"], record["modality"]
    numbers = [value for name, value in record.items() if name != "modality"]
    if type(step) is not int or type(epoch) is not int or step < 0 or not isinstance(modality, str):
        raise ValueError("no step, epoch or modality")
    # What is averaged must not overflow; what could not be measured is not finite.
    if not all(type(number) in (int, float) and not LARGEST < abs(number) < math.inf for number in numbers):
        raise ValueError("no number, or too large a one")
    return record


def recorded(path: Path, steps: int, checksum: int | None = None) -> list[Record]:
    """Return the records of the first `steps` steps of a run; those of later ones are left out.

    Raises InputError unless each step is there once, in order, and, where a `checksum` is known, as it was written.
    """
    records = [record for record in read_metrics(path) if record["step"] < steps]
    numbers = [record["step"] for record in records]
    wrong = None
    if missing := sorted(set(range(steps)).difference(numbers)):
        wrong = f"lacks step {missing[0]} of the {steps} that the checkpoint counts"
    elif numbers != list(range(steps)):
        first = next(place for place, step in enumerate(numbers) if place != step)
        wrong = f"has step {numbers[first]} where step {first} belongs"
    elif checksum is not None and checksum != checksum_of(records):
        wrong = f"does not hold the {steps} steps that the checkpoint counts, but others, or changed ones"
    if wrong:
        raise InputError(f"{path} {wrong}: restore it from a copy, or choose another run.name")
    return records


def is_time(name: str) -> bool:
    """Tell whether the clock says what a record holds under this name, so that no two runs have the same."""
    return name.endswith(SPEED) or name == WAITED or name.startswith("duration")


def checksum_of(records: Sequence[Record], checksum: int = 0) -> int:
    """Return the CRC-32 of records behind those of `checksum`, in the form in which they are written."""
    for record in records:
        checksum = zlib.crc32(_line(record).encode(), checksum)
    return checksum


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def summarise(records: Sequence[Record]) -> Record:
    """Average what every record of an epoch holds a number of, over all steps and by modality.

    Steps of which it is not finite do not count, as of a gradient that overflowed in fp16. Of what validation measured
    the last counts.
    """
    row: Record = {"epoch": records[0]["epoch"], "step": records[-1]["step"]}
    groups = {"": records}
    for modality in dict.fromkeys(record["modality"] for record in records):
        groups[f"{modality}_"] = [record for record in records if record["modality"] == modality]
    shared = set.intersection(*(set(record) for record in records))
    names = [name for name in records[0] if name in shared and isinstance(records[0][name], float)]
    for prefix, group in groups.items():
        for name in names:
            if not name.startswith(MEASURED):
                finite = [record[name] for record in group if math.isfinite(record[name])]
                row[prefix + name] = math.fsum(finite) / len(finite) if finite else math.nan
    for record in records:
        row |= {name: value for name, value in record.items() if name.startswith(MEASURED)}
    return row


class RunLog:
    """Writes the records of a run. Entered as a context; `start_step` drops what an interrupted run wrote beyond it.

    Raises InputError where what is there is not what the run had written by then, see `recorded`. `shown` names what
    is printed of an epoch beside its losses. With `writes=False`, as on all ranks but the first, records are kept in
    memory alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        total_steps: int,
        checksum: int | None = None,
        console: Console,
        shown: Sequence[str] = (),
        tensorboard: bool = True,
        writes: bool = True,
    ) -> None:
        self._writes = writes
        self._console = console
        self._total_steps, self._shown = total_steps, shown
        self._path, self._history = folder / METRICS, folder / "history.csv"
        self._records = recorded(self._path, start_step, checksum)
        self._checksum = checksum_of(self._records)
        self._rows: list[Record] = []  # of the epochs of the first `_in_rows` records
        self._in_rows = 0
        self._metrics: IO[str] = io.StringIO()
        self._events: EventFile | None = None
        if writes:
            write_text(self._path, "".join(map(_line, self._records)))
            self._metrics = self._path.open("a", encoding="utf-8", buffering=1)
        if writes and tensorboard:
            self._events = EventFile(folder / "tensorboard", start_step=start_step)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=total_steps, completed=start_step, speed="")
        self._last_line = time.monotonic()

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        with ExitStack() as stack:
            if error is not None:  # which says more than that a file of a full disk cannot be closed
                stack.enter_context(suppress(OSError))
            stack.enter_context(naming(self._path))
            stack.callback(self._metrics.close)
            if self._events is not None:
                stack.callback(self._events.close)

    def step(self, record: Record) -> None:
        """Log one optimiser step."""
        self._records.append(record)
        self._checksum = checksum_of([record], self._checksum)
        with naming(self._path):
            self._metrics.write(_line(record))
        if self._events is not None:
            scalars = {name: value for name, value in record.items() if isinstance(value, float)}
            self._events.add(record["step"], {f"{record['modality']}/{name}": of for name, of in scalars.items()})
        speed = _speed(record)
        text = f"epoch {record['epoch']} {record['modality']} loss {record['loss']:#.4g}"
        self._progress.update(self._task, completed=record["step"] + 1, description=text, speed=speed)
        # Where there is no terminal to draw on, a line every ten seconds.
        if not self._console.is_terminal and time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            self.say(f"step {record['step'] + 1}/{self._total_steps}  {text}  {speed}")

    def has_epoch_until(self, steps: int) -> bool:
        """Tell whether `history.csv` ends with the row of an epoch, or a part of one, that ends after so many steps."""
        lines = self._history.read_text(encoding="utf-8").splitlines() if self._history.exists() else []
        last = list(csv.DictReader([lines[0], lines[-1]])) if len(lines) > 1 else []
        return bool(last) and last[0].get("step") == str(steps - 1)

    def epoch(self) -> Record:
        """Write the row of the epoch that ends with the last step into `history.csv` and return it."""
        fresh = self._records[self._in_rows :]
        self._rows += [summarise(list(of)) for _, of in groupby(fresh, key=itemgetter("epoch"))]
        self._in_rows, rows = len(self._records), self._rows
        if not self._writes:
            return rows[-1]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        write_text(self._history, as_csv(columns, rows))
        self.say(_epoch_line(rows[-1], self._shown))
        return rows[-1]

    @property
    def records(self) -> Sequence[Record]:
        """Those of all steps so far."""
        return self._records

    @property
    def checksum(self) -> int:
        """That of all records so far, see `checksum_of`."""
        return self._checksum

    def flush(self) -> None:
        """Bring the step records to disk; called before a checkpoint that relies on them."""
        if not self._writes:
            return
        with naming(self._path):
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        if self._events is not None:
            self._events.flush()

    def say(self, text: str) -> None:
        """Print a line beside the progress bar, unbroken."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def _speed(row: Mapping[str, Any]) -> str:
    """Return how many samples were trained on; the row of an epoch that an older version began may not say it."""
    name = next((name for name in row if name.endswith(SPEED)), None)
    return "" if name is None else f"{row[name]:.1f} {name.removesuffix(SPEED)}/s"


def _epoch_line(row: Mapping[str, Any], names: Sequence[str]) -> str:
    losses = [name for name in row if name.endswith("_loss") and not name.startswith(MEASURED)]
    parts = "  ".join(f"{name.removesuffix('_loss')} {row[name]:#.4g}" for name in losses)
    parts = f" ({parts})" if len(losses) > 1 else ""
    shown = "".join(f"  {name.replace('_', ' ')} {row[name]:#.4g}" for name in names if name in row)
    return f"epoch {row['epoch']}: loss {row['loss']:#.4g}{parts}{shown}  {_speed(row)}"
