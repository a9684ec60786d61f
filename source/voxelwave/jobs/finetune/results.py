"""What a fine-tuning run found out: tables, and means over folds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxelwave.ops.files import write_text

RESULTS = "results.json"


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json`; what is not a number is null, since JSON has no word for it."""
    write_text(folder / RESULTS, json.dumps(_plain(results), indent=2) + "\n")


def over_folds(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation and values of every number that the results of folds share, nested as they are.

    A number that a fold does not know, null or nan, does not count; the deviation is that of a sample, null for one.
    """
    summary: dict[str, Any] = {}
    for key in folds[0]:
        values = [fold[key] for fold in folds if key in fold]
        if all(isinstance(value, Mapping) for value in values):
            summary[key] = over_folds(values)
        elif all(value is None or isinstance(value, int | float) for value in values):
            known = [value for value in values if value is not None and not _unknown(value)]
            summary[key] = {
                "mean": statistics.fmean(known) if known else None,
                "std": statistics.stdev(known) if len(known) > 1 else None,
                "folds": values,
            }
    return summary


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return None if _unknown(value) else value
