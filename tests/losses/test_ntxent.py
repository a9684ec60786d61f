import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss as Known

from voxelwave.losses.ntxent import NTXentLoss
from voxelwave.ops.seeding import torch_generator


def batch(size=6, seed=0):
    triplets = torch.randn(3, size, 5, generator=torch_generator(seed), dtype=torch.float64)
    same = torch.arange(size)
    return F.normalize(triplets, dim=-1), torch.stack([same, same, (same + 1) % size + size // 2])


def loops(triplets, numbers, temperature):
    """The mean over ordered pairs of one phantom of −log(p / (p + Σ n)), one vector at a time."""
    rows, labels = triplets.flatten(0, 1), numbers.flatten().tolist()
    costs = []
    for a, anchor in enumerate(rows):
        powers = [math.exp(float(anchor @ row) / temperature) for row in rows]
        wrong = sum(power for power, label in zip(powers, labels, strict=True) if label != labels[a])
        for p, power in enumerate(powers):
            if p != a and labels[p] == labels[a]:
                costs.append(-math.log(power / (power + wrong)))
    return sum(costs) / len(costs)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("size", [1, 2, 6])
def test_equals_the_plain_loops_and_pytorch_metric_learning(size, temperature):
    triplets, numbers = batch(size)
    loss, logs = NTXentLoss(temperature=temperature)(triplets, numbers, 0.2)
    assert float(loss) == pytest.approx(loops(triplets, numbers, temperature))
    known = Known(temperature=temperature)(triplets.flatten(0, 1), numbers.flatten())
    torch.testing.assert_close(loss, known)
    assert logs == {}


def test_vectors_of_one_phantom_are_never_its_negatives():
    numbers = torch.tensor([[0, 1], [0, 1], [1, 0]])
    # Views of phantom 0 in one place, those of 1 opposite: all pairs are found.
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    loss, _ = NTXentLoss()(ends[numbers], numbers, 0.2)
    assert 0 <= float(loss) < 1e-10
    swapped, _ = NTXentLoss()(torch.stack([ends, ends.flip(0), ends]), numbers, 0.2)
    assert float(swapped) > 2


def test_the_gradient_is_that_of_finite_differences_and_far_vectors_overflow_nothing():
    triplets, numbers = batch(3)
    triplets.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: NTXentLoss(temperature=0.3)(x, numbers, 0.2)[0], (triplets,))
    opposite = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.0]], [[1.0, 0.0]]], requires_grad=True)
    loss, _ = NTXentLoss(temperature=0.001)(opposite, torch.tensor([[0], [0], [1]]), 0.2)
    loss.backward()
    # The pair lies at -1000; the negative at +1000 of one view, and at -1000 of the other.
    assert float(loss.detach()) == pytest.approx((2000 + math.log(2)) / 2)
    assert opposite.grad.isfinite().all()


def test_the_margin_is_the_same_at_every_step_and_no_part_of_the_loss():
    triplets, numbers = batch()
    loss = NTXentLoss(margin=0.4)
    assert loss.margin_at(0) == loss.margin_at(1000) == loss.margin == 0.4
    assert torch.equal(loss(triplets, numbers, 0.4)[0], loss(triplets, numbers, 0.0)[0])


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": 0.0}, {"temperature": math.nan}, {"margin": -7.0}, {"margin": 2.0}],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match="temperature must be above 0, and margin at least 0"):
        NTXentLoss(**wrong)
