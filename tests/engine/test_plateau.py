import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch.optim.lr_scheduler import ReduceLROnPlateau

from voxelwave.engine.schedule import plateau_factor

# Some differ by shares of about the threshold, some by much, some are no number.
LOSSES = some.lists(
    some.integers(0, 12).map(lambda i: 1 - 0.03 * i)
    | some.floats(-2, 3)
    | some.sampled_from([math.nan, math.inf, -math.inf, 0.0]),
    max_size=60,
)


@settings(deadline=None)
@given(
    losses=LOSSES,
    factor=some.floats(0.05, 0.95),
    patience=some.integers(0, 5),
    threshold=some.sampled_from([0.0, 1e-4, 0.05]),
    floor=some.floats(0, 1),
)
def test_every_epoch_has_the_rate_that_torchs_scheduler_would_have_set(losses, factor, patience, threshold, floor):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=threshold, min_lr=floor, eps=0.0
    )
    for epoch, loss in enumerate(losses, start=1):
        scheduler.step(loss)
        found = plateau_factor(losses[:epoch], factor=factor, patience=patience, threshold=threshold, floor=floor)
        assert found == optimizer.param_groups[0]["lr"]


def test_a_loss_that_stays_halves_the_rate_after_three_epochs_down_to_the_floor():
    rates = [plateau_factor([1.0] * epochs, floor=0.2) for epochs in range(12)]
    assert rates == [1.0] * 4 + [0.5] * 3 + [0.25] * 3 + [0.2] * 2


def test_a_loss_that_falls_keeps_the_rate():
    assert plateau_factor([0.9**epoch for epoch in range(50)]) == 1.0


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"factor": 0.0}, {"patience": -1}, {"floor": 1.1}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match="between 0 and 1"):
        plateau_factor([1.0], **wrong)
