"""Figures of matplotlib that need no screen, and curves of what a run recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from voxelwave.ops.files import replacing
from voxelwave.ops.loggers import printable


class PlainFigure(Figure):
    """A figure that shows names as they are: what stands between two `$` is no formula. Its file is written whole.

    Bytes of a name that are no UTF-8, which no font has, are written out.
    """

    def savefig(self, fname: Path, **options: Any) -> None:  # type: ignore[override]
        """Write the figure."""
        for text in self.findobj(Text):
            text.set_parse_math(False)
            text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
        with replacing(fname) as part:
            super().savefig(part, **options)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` by `height` inches, whose parts make room for each other."""
    figure = PlainFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return after how many steps `name` was recorded, and its values; the record of the first step has number 0."""
    taken = [(record["step"] + 1, record[name]) for record in records if name in record]
    return [step for step, _ in taken], [value for _, value in taken]


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the mean over a thirtieth of the series on each side of every value, as far as the series goes."""
    reach = max(len(values) // 30, 1)
    return [float(np.mean(values[max(i - reach, 0) : i + reach + 1])) for i in range(len(values))]


def draw_smoothed(axis: Axes, steps: Sequence[int], values: Sequence[float], *, colour: str | None, label: str) -> None:
    """Draw a noisy series pale, and its running mean over it."""
    axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
    axis.plot(steps, running_mean(values), color=colour, label=label)
