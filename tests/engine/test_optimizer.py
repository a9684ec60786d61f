import copy

import pytest
import torch
from torch import nn

from voxelwave.engine.optimizer import OffloadedAdamW, weight_decay_groups


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3))


def trained(model, optimizer, steps, begin=0):
    for step in range(begin, begin + steps):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        inputs = torch.randn(8, 5).to(next(model.parameters()).dtype)
        model(inputs).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_groups_are_those_that_have_parameters():
    without_vectors = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False))
    decayed, kept = weight_decay_groups(model(), 0.1)
    assert (decayed["weight_decay"], len(decayed["params"])) == (0.1, 2)
    assert (kept["weight_decay"], len(kept["params"])) == (0.0, 3)
    for module, decay, count in ((model(), 0.0, 5), (without_vectors, 0.1, 2)):
        (group,) = weight_decay_groups(module, decay)
        assert (group["weight_decay"], len(group["params"])) == (decay, count)


def test_it_is_adamw():
    """torch's own, in the plain loop, with decay of one of the groups alone and a rate that falls."""
    ours, wanted = model(), model()
    trained(ours, OffloadedAdamW(weight_decay_groups(ours, 0.1), lr=1e-2), 20)
    trained(wanted, torch.optim.AdamW(weight_decay_groups(wanted, 0.1), lr=1e-2, foreach=False), 20)
    for one, other in zip(ours.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_weights_elsewhere_are_those_of_single_precision_rounded():
    """Weights in half precision stand for those on another device: they are copies of what is updated."""
    half, single = model().to(torch.bfloat16), model()
    single.load_state_dict({name: of.float() for name, of in half.state_dict().items()})
    ours = OffloadedAdamW(half.parameters(), lr=1e-3)
    oracle = torch.optim.AdamW(single.parameters(), lr=1e-3)
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip(half.parameters(), single.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator).to(torch.bfloat16)
            other.grad = one.grad.float()
        ours.step()
        oracle.step()
        for one, other in zip(half.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(one, other.to(torch.bfloat16), rtol=1e-2, atol=1e-4)


def test_it_goes_on_exactly_from_its_state():
    whole = model()
    trained(whole, OffloadedAdamW(whole.parameters(), lr=1e-2), 6)
    first = model()
    optimizer = OffloadedAdamW(first.parameters(), lr=1e-2)
    trained(first, optimizer, 3)
    second, state = copy.deepcopy(first), copy.deepcopy(optimizer.state_dict())
    other = OffloadedAdamW(second.parameters(), lr=1e-2)
    other.load_state_dict(state)
    trained(second, other, 3, begin=3)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_cleared_state_is_that_of_a_new_optimiser():
    one = model()
    optimizer = OffloadedAdamW(one.parameters(), lr=1e-2)
    trained(one, optimizer, 3)
    two = copy.deepcopy(one)
    optimizer.state.clear()
    trained(one, optimizer, 2, begin=3)
    trained(two, OffloadedAdamW(two.parameters(), lr=1e-2), 2, begin=3)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), two.parameters(), strict=True))


def test_a_foreign_state_is_refused():
    one = model()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        OffloadedAdamW(one.parameters(), lr=1e-2).load_state_dict({"state": {}, "param_groups": []})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_the_moments_stay_on_the_cpu():
    there, here = model(), model()
    optimizer = OffloadedAdamW(there.parameters(), lr=1e-2)
    there.cuda()  # after the optimiser was made, as a session does
    oracle = torch.optim.AdamW(here.parameters(), lr=1e-2)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip(there.parameters(), here.parameters(), strict=True):
            other.grad = torch.randn(other.shape, generator=generator)
            one.grad = other.grad.cuda()
        optimizer.step()
        oracle.step()
    for one, other in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-7)
    assert {of.device.type for moments in optimizer.state.values() for of in moments.values()} == {"cpu"}
