"""What the benchmarks of the data report with: medians with their spread, tables, results that a trial leaves alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from measuring import RESULTS, report

Spread = dict[str, float]


def spread(values: Sequence[float]) -> Spread:
    """Return the median, the 5th and the 95th percentile, and how many values there are."""
    low, median, high = np.percentile(values, (5, 50, 95))
    return {"median": float(median), "p5": float(low), "p95": float(high), "number": len(values)}


def trend(at: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the slope by least squares and its standard error, which takes the values for independent."""
    (slope, _), covariance = np.polyfit(at, values, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def shown(of: Spread) -> str:
    """Write a median with its spread."""
    return f"{of['median']:.3g} ({of['p5']:.3g}…{of['p95']:.3g})"


def table(head: str, rows: Sequence[Sequence[object]]) -> str:
    """Write a table in markdown; the head is given with its bars."""
    lines = [head, " | ".join(["---"] * len(head.split(" | "))), *(" | ".join(map(str, cells)) for cells in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def publish(name: str, figures: dict[str, Any], text: str, *, quick: bool) -> None:
    """Write the figures and the text to `results/<name>.json` and `.md`, or, of a trial run, print them alone."""
    if quick:
        print(json.dumps(figures, indent=2))
    else:
        report(name, figures)
        (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text)
