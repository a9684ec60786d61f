import math

import pytest
import torch

from voxelwave.losses.place_contrast import PlaceContrast, place_infonce


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def in_plain_loops(one, other, places, heads, temperature, margin, persons=None):
    """The loss of one anchor after the other, among the places of both views."""
    one, other = one / one.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
    persons = heads if persons is None else persons
    total = 0.0
    for anchors, candidates in ((one, other), (other, one)):
        for i in range(len(anchors)):
            kept = [
                float(anchors[i] @ view[j]) / temperature
                for view in (anchors, candidates)
                for j in range(len(view))
                if persons[i] != persons[j]
                or (heads[i] == heads[j] and float((places[i] - places[j]).abs().max()) > margin)
            ]
            positive = float(anchors[i] @ candidates[i]) / temperature
            total += math.log(sum(map(math.exp, [*kept, positive]))) - positive
    return total / (2 * len(one))


@pytest.mark.parametrize("margin", [0.0, 7.0])
def test_the_loss_is_that_of_plain_loops(margin):
    one, other = torch.randn(2, 20, 6, generator=generator(), dtype=torch.float64)
    places, heads = 20 * torch.rand(20, 3, generator=generator(1)), torch.arange(20) % 3
    loss, _ = place_infonce(one, other, places, heads, temperature=0.2, margin_mm=margin)
    assert float(loss) == pytest.approx(in_plain_loops(one, other, places, heads, 0.2, margin), rel=1e-6)
    persons = heads // 2  # the first two heads are of one person, who was there twice
    loss, _ = place_infonce(one, other, places, heads, persons, temperature=0.2, margin_mm=margin)
    assert float(loss) == pytest.approx(in_plain_loops(one, other, places, heads, 0.2, margin, persons), rel=1e-6)


def test_without_a_projector_the_features_are_contrasted_after_standardising_them_over_both_views():
    one, other = torch.randn(2, 20, 6, generator=generator(), dtype=torch.float64)
    places, heads = 20 * torch.rand(20, 3, generator=generator(1)), torch.arange(20) % 3
    both = torch.cat([one, other])
    both = (both - both.mean(0)) / (both.var(0, correction=0) + 1e-5).sqrt()
    loss, _ = PlaceContrast(6, temperature=0.2).double()(one, other, places, heads)
    assert float(loss) == pytest.approx(in_plain_loops(both[:20], both[20:], places, heads, 0.2, 0.0), rel=1e-6)


def test_places_that_find_themselves_are_counted():
    one = torch.eye(8)
    places, heads = torch.arange(24.0).view(8, 3), torch.zeros(8, dtype=torch.int64)
    assert place_infonce(one, one, places, heads, temperature=0.1, margin_mm=0)[1] == 1
    assert place_infonce(one, one.roll(1, 0), places, heads, temperature=0.1, margin_mm=0)[1] == 0


def test_a_shift_of_all_features_of_one_view_costs():
    # Among the places of the other view alone it would not: every candidate is as far away as before.
    one = torch.eye(8, 9, dtype=torch.float64)
    places, heads = torch.arange(24.0).view(8, 3), torch.zeros(8, dtype=torch.int64)
    other = one + torch.nn.functional.one_hot(torch.tensor(8), 9)
    alike, _ = place_infonce(one, one, places, heads, temperature=0.1, margin_mm=0)
    shifted, _ = place_infonce(one - other + one, other, places, heads, temperature=0.1, margin_mm=0)
    assert shifted > 10 * alike


@pytest.mark.parametrize("projection_dim", [0, 5])
def test_what_all_features_have_in_common_tells_nothing_but_what_one_view_has_does(projection_dim):
    one = torch.randn(20, 6, generator=generator(), dtype=torch.float64)
    other = one + 0.01 * torch.randn(20, 6, generator=generator(3), dtype=torch.float64)
    places, heads = 20 * torch.rand(20, 3, generator=generator(1)), torch.zeros(20, dtype=torch.int64)
    contrast = PlaceContrast(6, projection_dim=projection_dim).double()
    shift = 100 * torch.rand(6, generator=generator(2))
    expected, _ = contrast(one, other, places, heads)
    both, _ = contrast(one + shift, other + shift, places, heads)
    torch.testing.assert_close(both, expected, rtol=1e-3, atol=0)
    apart, _ = contrast(one + shift, other, places, heads)
    assert apart > 2 * expected


@pytest.mark.parametrize("projection_dim", [0, 5])
def test_with_fewer_than_two_places_there_is_nothing_to_tell_apart(projection_dim):
    one = torch.rand(1, 4, requires_grad=True)
    contrast = PlaceContrast(4, projection_dim=projection_dim)
    loss, found = contrast(one, torch.rand(1, 4), torch.zeros(1, 3), torch.zeros(1).long())
    assert (float(loss.detach()), float(found)) == (0, 0)
    loss.backward()


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"margin_mm": -1.0}, {"projection_dim": -1}])
def test_a_setting_out_of_range_is_refused(setting):
    with pytest.raises(ValueError, match=f"got .*{next(iter(setting.values()))}"):
        PlaceContrast(4, **setting)
