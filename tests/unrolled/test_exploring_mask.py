import pytest
import torch

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import highest_mean_power
from voxelwave.unrolled.exploring_mask import ExploringMask

SHAPE = (16, 18)


def spectra(number=8, seed=1):
    """Return k-space of one image again and again, whose places differ by a factor of 1.1 from each other."""
    order = torch.randperm(SHAPE[0] * SHAPE[1], generator=torch_generator(seed)).double()
    return (1.1 ** (order / 2)).view(1, *SHAPE).repeat(number, 1, 1) + 0j


def learn(layer, kspace, steps, mask_lr=0.1):
    """Train the mask behind the zero-filled image; yield what each step kept."""
    for step in range(steps):
        of = kspace[step % 2 :: 2]
        kept = layer(of)
        yield kept[0].detach() != 0
        (kept - of).abs().square().sum().backward()
        layer.mask_step(mask_lr)


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9])
def test_it_ends_with_the_mask_of_highest_mean_power_within_forty_steps(drop_rate):
    layer, kspace = ExploringMask(SHAPE, drop_rate=drop_rate), spectra()
    for _ in learn(layer, kspace, 40):
        pass
    layer.settle()
    assert torch.equal(layer.mask(), highest_mean_power(kspace, drop_rate=drop_rate))


def test_scores_are_what_a_place_costs_when_it_is_left_out():
    layer, kspace = ExploringMask(SHAPE, drop_rate=0.5), spectra()
    for _ in learn(layer, kspace, 20):
        pass
    power = 2 * kspace[:4].abs().square().sum(0)
    known = layer.counts > 0
    assert bool(known.all())
    torch.testing.assert_close(layer.scores, power, rtol=1e-9, atol=0)


def test_every_step_tries_something_and_leaves_out_no_place_that_is_certain():
    layer, kspace = ExploringMask(SHAPE, drop_rate=0.3), spectra()
    masks = list(learn(layer, kspace, 60))
    best = highest_mean_power(kspace, drop_rate=0.3)
    strongest = highest_mean_power(kspace, drop_rate=0.9)
    late = masks[30:]
    assert all(bool((best & ~mask).any()) for mask in late)
    assert not any(bool((strongest & ~mask).any()) for mask in late)


@pytest.mark.parametrize("explored", [0.0, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(explored):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        ExploringMask(SHAPE, explored=explored)
