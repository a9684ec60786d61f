"""Comparing the records of two runs, step by step: what follows from the settings has to be equal, times have not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelwave.engine.run_log import METRICS, Record, is_time, read_metrics
from voxelwave.errors import InputError
from voxelwave.jobs.common.config_file import read_config
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import CONFIG, flat_settings

PLACE = ("run.name", "run.out_dir")  # settings that say where a run is, which the command was told


def compare_logs(
    first: Path,
    second: Path,
    *,
    columns: Sequence[str] | None = None,
    tolerance: float = 0.0,
    console: Console | None = None,
) -> bool:
    """Print where two runs differ; True where every step that both have recorded is equal.

    Args:
        first: a run folder or its `metrics.jsonl`; `second` alike.
        columns: names of what is compared; None takes whatever is recorded, but for times.
        tolerance: the difference, relative to the larger of two numbers, that counts as none.

    Raises InputError where there are no records, none of a common step, or no such column.
    """
    console = console or Console()
    # 1. What there is.
    records, others = _records_of(first), _records_of(second)
    common = sorted(records.keys() & others.keys())
    if not common:
        raise InputError(f"{first} and {second} have no step in common: nothing can be compared")
    known = dict.fromkeys(name for step in common for record in (records[step], others[step]) for name in record)
    if unknown := sorted(set(columns or ()) - set(known)):
        raise InputError(f"no record of a common step has '{unknown[0]}'; compared can be {', '.join(known)}")
    names = [name for name in known if not is_time(name)] if columns is None else list(columns)

    # 2. What differs.
    parted = {step: found for step in common if (found := _differing(records[step], others[step], names, tolerance))}
    console.say(*_other_settings(first, second))
    within = f" within {tolerance:g}" if tolerance else ""
    console.say(f"{len(common) - len(parted)} of {len(common)} steps are equal{within}: {', '.join(names)}")
    if parted:
        step = min(parted)
        values = {name: (records[step].get(name), others[step].get(name)) for name in parted[step]}
        console.say(f"the first that differs is step {step}:", *_lines(values))
    for path, steps in ((first, records.keys() - others.keys()), (second, others.keys() - records.keys())):
        if steps:
            console.say(f"{len(steps)} steps are in {path} alone, from step {min(steps)} on")
    return not parted


def _records_of(path: Path) -> dict[int, Record]:
    """Return the records of a run by their step; raises InputError where there are none, or one is there twice."""
    file = path / METRICS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"no records at {file}: give a run folder, or its {METRICS}")
    records = read_metrics(file)
    by_step = {record["step"]: record for record in records}
    if not records or len(by_step) < len(records):
        reason = "holds a step twice" if records else "holds no step yet"
        raise InputError(f"{file} {reason}: give the records of a run")
    return by_step


def _differing(record: Record, other: Record, names: Sequence[str], tolerance: float) -> list[str]:
    return [name for name in names if not _equal(record.get(name), other.get(name), tolerance)]


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    """Tell whether two values are equal; what could not be measured in either run is."""
    difference = relative_difference(one, other)
    return one == other if difference is None else difference <= tolerance


def relative_difference(one: Any, other: Any) -> float | None:
    """Return the difference of two numbers over the larger magnitude, None where one of them is no number."""
    if not all(isinstance(value, int | float) for value in (one, other)):
        return None
    if math.isnan(one) or math.isnan(other):
        return 0.0 if math.isnan(one) and math.isnan(other) else math.inf
    return 0.0 if one == other else float(abs(one - other) / max(abs(one), abs(other)))


def _lines(values: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    for name, pair in values.items():
        one, other = ("missing" if value is None else repr(value) for value in pair)
        difference = relative_difference(*pair)
        yield f"  {name}: {one} and {other}" + ("" if difference is None else f", relative difference {difference:.3g}")


def _other_settings(first: Path, second: Path) -> Iterator[str]:
    """Yield a line for each setting in which two run folders differ; files of records alone have none."""
    if not all((path / CONFIG).is_file() for path in (first, second)):
        return
    try:
        one, other = (flat_settings(read_config(path / CONFIG)) for path in (first, second))
    except InputError as error:
        yield f"settings were not compared: {error}"
        return
    for key in sorted((one.keys() | other.keys()) - {*PLACE}):
        if one.get(key) != other.get(key):
            yield f"setting {key}: {one.get(key, 'missing')} and {other.get(key, 'missing')}"
