import pytest
import torch

from voxelwave.masking.random import RandomMasking


def test_the_share_is_exact_and_every_token_is_hidden_as_often():
    levels = RandomMasking(ratio=0.75)((4, 6, 5), 4000, torch.Generator().manual_seed(0))
    assert (levels.hidden.flatten(1).sum(1) == 90).all()
    assert not levels.hard.any()
    often = levels.hidden.float().mean(0)
    assert (often - 0.75).abs().max() < 5 * (0.75 * 0.25 / 4000) ** 0.5


def test_what_leaves_nothing_to_see_or_to_predict_is_refused():
    with pytest.raises(ValueError, match="ratio must lie between 0 and 1, got 1"):
        RandomMasking(ratio=1)
    with pytest.raises(ValueError, match="one token"):
        RandomMasking()((1, 1, 1), 1, torch.Generator())
    assert RandomMasking(ratio=0.999)((2, 1, 1), 1, torch.Generator()).visible.sum() == 1
