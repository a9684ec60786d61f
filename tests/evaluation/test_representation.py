import pytest
import torch

from voxelwave.evaluation.representation import effective_rank, feature_std


def test_effective_rank_counts_equal_directions():
    directions = torch.linalg.qr(torch.randn(16, 16))[0][:5]
    features = torch.cat([directions, -directions]) + 3.0
    assert effective_rank(features) == pytest.approx(5.0, abs=1e-3)


def test_effective_rank_equals_its_definition():
    features = torch.randn(40, 6, dtype=torch.float64) * torch.tensor([1, 2, 3, 4, 5, 6])
    singular = torch.linalg.svdvals(features - features.mean(0))
    share = singular / singular.sum()
    assert effective_rank(features) == pytest.approx(float(torch.exp(-(share * share.log()).sum())))


def test_both_gauges_are_zero_for_a_collapsed_representation():
    features = torch.randn(1, 8).expand(50, 8)
    assert effective_rank(features) == 0.0
    assert feature_std(features) == pytest.approx(0.0, abs=1e-6)


def test_feature_std_is_one_for_an_isotropic_representation():
    assert feature_std(torch.randn(20000, 32)) == pytest.approx(1.0, abs=0.02)
