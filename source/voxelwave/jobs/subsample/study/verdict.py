"""Whether a network fits its training images too well, not well enough, or neither: one rule for all cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, NamedTuple

OVER_DB, UNDER_DB = 0.5, 0.1
FALLING = 0.03  # of the validation error, over the last tenth of the epochs beside the tenth before

Fit = Literal["over", "under", "neither"]


class Verdict(NamedTuple):
    """What the rule says, and of which numbers."""

    fit: Fit
    gap_db: float
    gain_gap_db: float
    reason: str


def verdict_of(
    training: Mapping[str, Mapping[str, float]],
    test: Mapping[str, Mapping[str, float]],
    validation_errors: Sequence[float],
) -> Verdict:
    """Return the verdict on a network from its scores and those of the zero-filled images.

    Images differ in how hard they are, so that a plain gap between two sets says little. What the network adds to the
    zero-filled image is compared instead:

    - over: it adds more than 0.5 dB less on the test than on the images that it was trained on;
    - under: it adds less than 0.1 dB even to those, or the validation error was still falling by more than 3 % from
      one tenth of the epochs to the last one;
    - neither: else.

    Args:
        training, test: of "network" and "zero_filled", each with a "psnr_db".
        validation_errors: of the epochs with the final mask, in order.
    """
    gap = training["network"]["psnr_db"] - test["network"]["psnr_db"]
    if any(of["zero_filled"]["psnr_db"] == math.inf for of in (training, test)):
        return Verdict("neither", gap, 0.0, "nothing is removed")
    gains = [of["network"]["psnr_db"] - of["zero_filled"]["psnr_db"] for of in (training, test)]
    gain_gap = gains[0] - gains[1]
    added = f"it adds {gains[0]:+.2f} dB in training, and {gains[1]:+.2f} dB on the test"
    if gain_gap > OVER_DB:
        return Verdict("over", gap, gain_gap, added)
    if gains[0] < UNDER_DB:
        return Verdict("under", gap, gain_gap, f"it adds {gains[0]:+.2f} dB even to the images of training")
    tenth = max(len(validation_errors) // 10, 1)
    last, before = fmean(validation_errors[-tenth:]), fmean(validation_errors[-2 * tenth : -tenth] or [0.0])
    if last < (1 - FALLING) * before:
        fell = f"{1 - last / before:.1%}"
        return Verdict("under", gap, gain_gap, f"the validation error still fell by {fell} at the end: train longer")
    return Verdict("neither", gap, gain_gap, added)
