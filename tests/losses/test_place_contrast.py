import math

import pytest
import torch

from voxelwave.losses.place_contrast import PlaceContrast, place_infonce


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def in_plain_loops(one, other, places, heads, temperature, margin):
    """The loss of both directions, one anchor after the other."""
    one, other = one / one.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
    total = 0.0
    for anchors, candidates in ((one, other), (other, one)):
        for i in range(len(anchors)):
            logits = {j: float(anchors[i] @ candidates[j]) / temperature for j in range(len(candidates))}
            kept = [
                value
                for j, value in logits.items()
                if i == j or heads[i] != heads[j] or float((places[i] - places[j]).abs().max()) > margin
            ]
            total += math.log(sum(map(math.exp, kept))) - logits[i]
    return total / (2 * len(one))


@pytest.mark.parametrize("margin", [0.0, 7.0])
def test_the_loss_is_that_of_plain_loops(margin):
    one, other = torch.randn(2, 20, 6, generator=generator(), dtype=torch.float64)
    places, heads = 20 * torch.rand(20, 3, generator=generator(1)), torch.arange(20) % 3
    loss, _ = place_infonce(one, other, places, heads, temperature=0.2, margin_mm=margin)
    assert float(loss) == pytest.approx(in_plain_loops(one, other, places, heads, 0.2, margin), rel=1e-6)


def test_places_that_find_themselves_are_counted():
    one = torch.eye(8)
    places, heads = torch.arange(24.0).view(8, 3), torch.zeros(8, dtype=torch.int64)
    assert place_infonce(one, one, places, heads, temperature=0.1, margin_mm=0)[1] == 1
    assert place_infonce(one, one.roll(1, 0), places, heads, temperature=0.1, margin_mm=0)[1] == 0


def test_what_all_features_have_in_common_tells_nothing_but_what_one_view_has_does():
    one = torch.randn(20, 6, generator=generator(), dtype=torch.float64)
    other = one + 0.01 * torch.randn(20, 6, generator=generator(3), dtype=torch.float64)
    places, heads = 20 * torch.rand(20, 3, generator=generator(1)), torch.zeros(20, dtype=torch.int64)
    contrast, shift = PlaceContrast(6).double(), 100 * torch.rand(6, generator=generator(2))
    expected, _ = contrast(one, other, places, heads)
    both, _ = contrast(one + shift, other + shift, places, heads)
    torch.testing.assert_close(both, expected, rtol=1e-3, atol=0)
    apart, _ = contrast(one + shift, other, places, heads)
    assert apart > 2 * expected


def test_with_fewer_than_two_places_there_is_nothing_to_tell_apart():
    loss, found = PlaceContrast(4)(torch.rand(1, 4), torch.rand(1, 4), torch.zeros(1, 3), torch.zeros(1).long())
    assert (float(loss.detach()), float(found)) == (0, 0)
    loss.backward()


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"margin_mm": -1.0}, {"projection_dim": 0}])
def test_a_setting_out_of_range_is_refused(setting):
    with pytest.raises(ValueError, match=f"got .*{next(iter(setting.values()))}"):
        PlaceContrast(4, **setting)
