import pytest
import torch
from torch import nn

from voxelwave.ops.evaluating import evaluating


def test_every_part_is_in_evaluation_without_gradients_and_each_is_back_in_its_own_mode():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    module[0].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
        assert not module(torch.ones(1, 2)).requires_grad
    assert [part.training for part in (module, module[0], module[1])] == [True, False, True]
    assert module(torch.ones(1, 2)).requires_grad


def test_the_modes_are_back_after_an_error():
    module = nn.Dropout(0.5)
    with pytest.raises(RuntimeError, match="within"), evaluating(module):
        raise RuntimeError("within")
    assert module.training
