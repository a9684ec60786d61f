"""Which of several specialists reconstructs a volume."""

from __future__ import annotations

import math
from collections.abc import Mapping

from voxelwave.errors import InputError
from voxelwave.ops.loggers import logger

FAR = 1.25  # a rate over that of the specialist, or the other way round


def pick_specialist(anatomy: str, acceleration: float, specialists: Mapping[str, tuple[str, float]]) -> str:
    """Return the name of the specialist of `anatomy` whose rate is nearest to `acceleration` on a logarithmic scale.

    Of two that are as near the one with the lower rate is taken. A rate that is more than a quarter away is warned of.

    Args:
        acceleration: nominal, as `physics.sampled_lines.acceleration_of` reads it from a mask.
        specialists: by name, the anatomy and the rate that each was trained for.

    Raises InputError where none is of that anatomy, ValueError for a rate that is not above 0.
    """
    if not all(0 < rate < math.inf for rate in (acceleration, *(rate for _, rate in specialists.values()))):
        raise ValueError(f"rates lie above 0, got {acceleration} and {dict(specialists)}")
    rates = {name: rate for name, (of, rate) in specialists.items() if of == anatomy}
    if not rates:
        known = ", ".join(sorted({of for of, _ in specialists.values()})) or "none"
        raise InputError(f"no specialist is of '{anatomy}', they are of {known}: train one, or name a run by hand")

    def distance(rate: float) -> float:
        return abs(math.log(acceleration / rate))

    name = min(rates, key=lambda name: (distance(rates[name]), rates[name]))
    if distance(rates[name]) > math.log(FAR) + 1e-9:
        logger.warning(
            "warning: an acceleration of %.3g, and the nearest specialist of %s, %s, was trained for %.3g",
            *(acceleration, anatomy, name, rates[name]),
        )
    return name
