import math
from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from voxelwave.errors import InputError
from voxelwave.losses.triplet import TripletLoss, scheduled_margin, triplet_distances
from voxelwave.ops.seeding import torch_generator
from voxelwave.registry import METRIC_LOSSES

# Of a batch of six; the other phantom of the first triplet is that of the third, and so on.
SAME, DIFF = [0, 1, 2, 3, 4, 5], [2, 9, 0, 8, 7, 9]


def batch(size=6, spread=0.5, dim=5, seed=0):
    """Unit vectors [3, size, dim] whose second view lies near the first, and the numbers of their phantoms."""
    generator = torch_generator(seed)
    first, noise, other = torch.randn(3, size, dim, generator=generator, dtype=torch.float64)
    triplets = F.normalize(torch.stack([first, first + spread * noise, other]), dim=-1)
    return triplets, torch.tensor([SAME[:size], SAME[:size], DIFF[:size]])


def all_triplets(triplets, numbers):
    """Every (anchor, positive, negative) of a batch with its two distances, one at a time."""
    rows, labels = triplets.flatten(0, 1).tolist(), numbers.flatten().tolist()
    for a, p, n in product(range(len(rows)), repeat=3):
        if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
            yield a, math.dist(rows[a], rows[p]), math.dist(rows[a], rows[n])


def test_given_triplets_cost_what_the_plain_loop_and_torchs_loss_say():
    triplets, numbers = batch(spread=1.5)
    loss, logs = TripletLoss()(triplets, numbers, 0.2)
    costs = [
        max(math.dist(one, two) - math.dist(one, other) + 0.2, 0)
        for one, two, other in zip(*triplets.tolist(), strict=True)
    ]
    assert 0 < costs.count(0) < 6
    assert float(loss) == pytest.approx(sum(costs) / 6)
    torch.testing.assert_close(loss, nn.TripletMarginLoss(margin=0.2, eps=0)(*triplets))
    assert logs == {}


@pytest.mark.parametrize("mining", ["semihard", "hard"])
@pytest.mark.parametrize("margin", [0.05, 0.2, 0.7])
def test_mined_triplets_are_those_that_the_plain_loops_choose(mining, margin):
    triplets, numbers = batch()
    every = list(all_triplets(triplets, numbers))
    if mining == "semihard":
        chosen = [(pos, neg) for _, pos, neg in every if pos < neg <= pos + margin]
    else:
        anchors = sorted({anchor for anchor, _, _ in every})
        chosen = [
            (max(pos for a, pos, _ in every if a == anchor), min(neg for a, _, neg in every if a == anchor))
            for anchor in anchors
        ]
        assert len(anchors) > 12  # some of the other phantoms are those of another triplet, or of two
    loss, logs = METRIC_LOSSES.build("triplet", mining=mining)(triplets, numbers, margin)
    assert 0 < len(chosen) < len(every)
    assert float(loss) == pytest.approx(sum(max(pos - neg + margin, 0) for pos, neg in chosen) / len(chosen))
    assert float(logs["mined"]) == pytest.approx(len(chosen) / len(every))


@pytest.mark.parametrize("mining", ["none", "semihard", "hard"])
def test_the_gradient_is_that_of_finite_differences(mining):
    triplets, numbers = batch(size=3)
    triplets.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TripletLoss(mining=mining)(x, numbers, 0.5)[0], (triplets,))


def test_nothing_is_mined_in_evaluation():
    triplets, numbers = batch()
    plain, _ = TripletLoss()(triplets, numbers, 0.2)
    for mining in ("semihard", "hard"):
        loss, logs = TripletLoss(mining=mining).eval()(triplets, numbers, 0.2)
        assert torch.equal(loss, plain)
        assert logs == {}


@pytest.mark.parametrize("mining", ["semihard", "hard"])
def test_a_batch_without_a_triplet_to_mine_costs_nothing_and_backpropagates(mining):
    # Two views on one side, the other phantom opposite: beyond any margin.
    vector = torch.tensor([1.0, 0.0])
    triplets = torch.stack([vector, vector, -vector])[:, None].requires_grad_()
    numbers = torch.tensor([[3], [3], [4]] if mining == "semihard" else [[3], [3], [3]])
    loss, logs = TripletLoss(mining=mining)(triplets, numbers, 0.2)
    loss.backward()
    assert float(loss.detach()) == float(logs["mined"]) == 0.0
    assert torch.equal(triplets.grad, torch.zeros(3, 1, 2))


@pytest.mark.parametrize("mining", ["none", "semihard", "hard"])
def test_views_that_are_the_same_have_finite_gradients(mining):
    same = F.normalize(torch.randn(4, 5, generator=torch_generator(1)), dim=-1)
    other = F.normalize(same + 0.1 * torch.randn(4, 5, generator=torch_generator(2)), dim=-1)
    triplets = torch.stack([same, same, other]).requires_grad_()
    numbers = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]])
    TripletLoss(mining=mining)(triplets, numbers, 0.2)[0].backward()
    assert triplets.grad.isfinite().all()
    assert triplets.grad.any()


@pytest.mark.parametrize("mining", ["none", "semihard", "hard"])
def test_a_nan_in_one_vector_makes_the_loss_no_number(mining):
    triplets, numbers = batch()
    triplets[1, 2, 0] = torch.nan
    assert TripletLoss(mining=mining)(triplets, numbers, 0.2)[0].isnan()


def test_distances_are_those_of_the_first_view():
    triplets, _ = batch()
    d_pos, d_neg = triplet_distances(triplets)
    first, second, other = triplets.tolist()
    assert d_pos.tolist() == pytest.approx([math.dist(*pair) for pair in zip(first, second, strict=True)])
    assert d_neg.tolist() == pytest.approx([math.dist(*pair) for pair in zip(first, other, strict=True)])


def test_the_margin_goes_from_its_start_to_its_end_and_stays_there():
    linear = TripletLoss(margin=0.3, margin_schedule="linear", start_margin=0.1, schedule_steps=10)
    assert [linear.margin_at(step) for step in (0, 5, 10, 99)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    cosine = TripletLoss(margin=0.3, margin_schedule="cosine", start_margin=0.1, schedule_steps=10)
    margins = [cosine.margin_at(step) for step in range(12)]
    assert margins == pytest.approx([0.2 - 0.1 * math.cos(math.pi * min(step, 10) / 10) for step in range(12)])
    assert all(a <= b for a, b in pairwise(margins))
    assert TripletLoss(margin=0.3, start_margin=0.1).margin_at(0) == 0.3
    falling = scheduled_margin(3, margin=0.0, start_margin=1.0, steps=4, schedule="linear")
    assert falling == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"margin": -0.1}, "at most 2 apart"),
        ({"margin": 2.0}, "at most 2 apart"),
        ({"start_margin": math.nan}, "at most 2 apart|finite"),
        ({"margin_schedule": "linear"}, "needs schedule_steps"),
        ({"mining": "easy"}, "mining"),
    ],
)
def test_settings_out_of_range_are_named(wrong, reason):
    with pytest.raises(InputError, match=reason):
        METRIC_LOSSES.build("triplet", **wrong)
