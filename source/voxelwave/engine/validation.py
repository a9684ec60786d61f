"""What an objective logs of samples that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable

from voxelwave.contracts import StepOutput
from voxelwave.engine.run_log import MEASURED
from voxelwave.errors import DivergedError


def validation_means(outputs: Iterable[tuple[StepOutput, int, str]]) -> dict[str, float]:
    """Return the means of what `outputs` log, as `validation_…`; each has a number of samples, and a name for them.

    Raises DivergedError where one is not finite.
    """
    sums: dict[str, float] = {}
    total = 0
    for output, samples, place in outputs:
        total += samples
        for name, value in output.logs.items():
            if not math.isfinite(float(value)):
                raise DivergedError(f"{name} of {place} is {float(value)}: lower the learning rate")
            sums[name] = sums.get(name, 0.0) + float(value) * samples
    return {f"{MEASURED}{name}": value / total for name, value in sums.items()}
