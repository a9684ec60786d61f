import math
from itertools import pairwise

import pytest
import torch

from voxelwave.engine.ema import ExponentialMovingAverage
from voxelwave.engine.schedule import warmup_cosine


def test_rate_rises_linearly_then_falls_along_a_half_cosine():
    rates = [warmup_cosine(step, total_steps=110, warmup_steps=10, floor=0.1) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[-1] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_moving_average_follows_its_formula():
    layer = torch.nn.Linear(2, 2)
    average = ExponentialMovingAverage(layer, momentum=0.9)
    before = layer.weight.detach().clone()
    layer.weight.data += 1.0
    average.update(layer)
    torch.testing.assert_close(average.model.weight, 0.9 * before + 0.1 * layer.weight)
    assert not any(parameter.requires_grad for parameter in average.parameters())
