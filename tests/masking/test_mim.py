import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelwave.masking.mim import MiMMasking

GRIDS = [(n, n, n) for n in (2, 3, 4, 5, 6, 8, 9, 12, 16, 20, 32)] + [
    (4, 8, 16),
    (2, 3, 5),
    (20, 24, 16),
    (6, 10, 7),
]


def draw(grid, batch_size=3, seed=0, **settings):
    return MiMMasking(**settings)(grid, batch_size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_shares_are_exact_to_half_a_block(grid):
    masking = MiMMasking()
    levels = draw(grid)
    num_tokens = grid[0] * grid[1] * grid[2]
    side = masking.side_for(grid)
    tiled = all(length % side == 0 for length in grid)
    unit = side**3 if tiled else 8 if all(length % 2 == 0 for length in (side, *grid)) else 1
    for sample in range(3):
        assert abs(levels.hidden[sample].sum() - 0.6 * num_tokens) <= unit / 2
        assert abs(levels.hard[sample].sum() - 0.48 * num_tokens) <= unit / 2
        assert 0.3 <= levels.hidden[sample].float().mean() <= 0.7


@settings(deadline=None, max_examples=40)
@given(grid=st.tuples(*[st.integers(2, 18)] * 3), seed=st.integers(0, 2**31))
def test_levels_are_disjoint_and_complete_for_every_grid(grid, seed):
    levels = draw(grid, seed=seed)
    count = levels.visible.int() + levels.easy.int() + levels.hard.int()
    assert bool((count == 1).all())
    assert torch.equal(levels.hidden, levels.easy | levels.hard)
    assert bool(levels.visible.flatten(1).any(1).all())
    assert bool(levels.hidden.flatten(1).any(1).all())
    assert levels.levels.flatten(1).sum(1).unique().numel() == 1


@pytest.mark.parametrize(("smallest", "side"), [(2, 1), (3, 2), (4, 2), (5, 2), (8, 2), (9, 4), (16, 4), (32, 4)])
def test_block_side_follows_the_smallest_side_of_the_grid(smallest, side):
    assert MiMMasking().side_for((32, smallest, 40)) == side


@pytest.mark.parametrize(("smallest", "side"), [(2, 1), (4, 2), (5, 3), (8, 3), (9, 4)])
def test_described_block_sides(smallest, side):
    assert MiMMasking(block_side="described").side_for((smallest, 16, 16)) == side


@pytest.mark.parametrize(("grid", "side"), [((8, 8, 8), 2), ((16, 16, 16), 4), ((16, 8, 32), 2)])
def test_blocks_are_whole(grid, side):
    hidden = draw(grid).hidden
    for d, h, w in itertools.product(*(range(0, length, side) for length in grid)):
        block = hidden[:, d : d + side, h : h + side, w : w + side].flatten(1)
        assert bool((block == block[:, :1]).all())


@pytest.mark.parametrize("grid", [(10, 10, 10), (14, 16, 18), (6, 10, 12)])
def test_no_octet_is_cut_on_even_grids_that_blocks_do_not_tile(grid):
    hidden = draw(grid).hidden
    for d, h, w in itertools.product(*(range(0, length, 2) for length in grid)):
        octet = hidden[:, d : d + 2, h : h + 2, w : w + 2].flatten(1)
        assert bool((octet == octet[:, :1]).all())


@pytest.mark.parametrize("grid", [(8, 8, 8), (16, 16, 16), (6, 10, 7)])
def test_no_more_is_hidden_around_an_easy_token_than_around_a_hard_one(grid):
    """Counted token by token, in the cube that reaches the side of a block."""
    levels, reach = draw(grid), MiMMasking().side_for(grid)
    places = torch.cartesian_prod(*(torch.arange(length) for length in grid))
    near = (places[:, None] - places).abs().amax(2) <= reach
    for sample in range(3):
        hidden, hard, easy = (of[sample].flatten() for of in (levels.hidden, levels.hard, levels.easy))
        around = (near & hidden).sum(1) / near.sum(1)
        assert around[hard].min() >= around[easy].max() - 2e-6
        assert around[hard].max() > around[easy].min()


def test_which_tokens_are_hard_is_random_where_as_much_is_hidden_around_several():
    """In a grid of two tokens a side, whose corners are all alike."""
    hard = draw((2, 2, 2), 1000).hard.float().mean(0)
    assert bool(((hard - hard.mean()).abs() < 0.06).all())


def test_every_sample_has_a_mask_of_its_own_and_a_seed_repeats_them():
    first, again, other = draw((8, 8, 8), 4), draw((8, 8, 8), 4), draw((8, 8, 8), 4, seed=1)
    assert torch.equal(first.levels, again.levels)
    assert not torch.equal(first.levels, other.levels)
    assert len({sample.numpy().tobytes() for sample in first.levels}) == 4


def test_every_block_is_hidden_as_often_as_any_other():
    hidden = draw((8, 8, 8), 2000).hidden.float().mean(0)
    assert bool(((hidden - 38 / 64).abs() < 0.06).all())


def test_a_grid_of_one_block_is_an_error():
    with pytest.raises(ValueError, match="one mask block"):
        draw((4, 4, 4), block_side=4)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_ratios_outside_0_to_1_are_errors(ratio):
    with pytest.raises(ValueError, match="global_ratio must lie between 0 and 1"):
        MiMMasking(global_ratio=ratio)
