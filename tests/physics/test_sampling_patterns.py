"""What is special of each sampling; what they have in common is in tests/contracts."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.spatial import KDTree

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.samplings.equispaced import EquispacedLines
from voxelwave.physics.samplings.poisson_disc import PoissonDisc
from voxelwave.physics.samplings.random_lines import RandomLines
from voxelwave.physics.samplings.variable_density import VariableDensityLines

# Draws whose mean is compared with a probability.
REPEATS = 1500


def lines(sampling, width, key=1):
    """Return the sampled lines, in order."""
    return sampling((2, width), torch_generator(key))[0].nonzero()[:, 0].tolist()


def how_often(sampling, width):
    """Return the share of the draws that sample each line."""
    generator = torch_generator(3)
    return sum(sampling((1, width), generator)[0].double() for _ in range(REPEATS)) / REPEATS


@pytest.mark.parametrize("width", [16, 33, 128, 129])
@pytest.mark.parametrize(("acceleration", "offset"), [(2, 0), (4, 3), (8, 5), (2.5, 1)])
def test_equispaced_lines_are_those_that_a_loop_counts(width, acceleration, offset):
    expected, place = set(), offset
    while place < width:
        expected.add(int(place))
        place += acceleration
    count = round(0.08 * width)
    start = (width - count + 1) // 2
    expected |= set(range(start, start + count))
    sampling = EquispacedLines(acceleration=acceleration, center_fraction=0.08, offset=offset)
    assert lines(sampling, width) == sorted(expected)


@pytest.mark.parametrize("width", [64, 128, 129, 368])
@pytest.mark.parametrize(("acceleration", "center_fraction"), [(4, 0.08), (8, 0.04), (3.3, 0.1), (1.5, 0.3)])
@pytest.mark.parametrize("offset", [0, 1, None])
def test_exact_lines_are_spaced_evenly_beside_the_centre(width, acceleration, center_fraction, offset):
    sampling = EquispacedLines(acceleration=acceleration, center_fraction=center_fraction, offset=offset, exact=True)
    count = round(center_fraction * width)
    centre = range((width - count + 1) // 2, (width - count + 1) // 2 + count)
    outer = [line for line in range(width) if line not in centre]
    taken = [outer.index(line) for line in lines(sampling, width) if line not in centre]
    gaps = [after - before for before, after in zip(taken, [*taken[1:], taken[0] + len(outer)], strict=True)]
    # fastMRI's spacing, which makes the number right on average; a whole number of lines lies to either side of it.
    spacing = acceleration * (width - count) / (width - acceleration * count)
    wanted = round(width / acceleration) - count
    assert len(gaps) == wanted
    assert max(gaps) - min(gaps) <= 1
    assert sum(gaps) / wanted == pytest.approx(spacing, rel=0.5 / wanted)


def test_every_offset_is_drawn_alike_where_none_is_given():
    sampling = EquispacedLines(acceleration=4, center_fraction=0.01, offset=None)
    generator = torch_generator(0)
    first = [int(sampling((1, 40), generator)[0].nonzero()[0, 0]) for _ in range(400)]
    assert all(60 < first.count(offset) < 140 for offset in range(4))
    assert set(first) == set(range(4))


@pytest.mark.parametrize("offset", [-1, 4])
def test_an_offset_that_skips_a_line_is_refused(offset):
    with pytest.raises(ValueError, match=f"offset must be at least 0 and below the acceleration of 4, got {offset}"):
        EquispacedLines(acceleration=4, offset=offset)


def test_random_lines_are_each_as_likely():
    often = how_often(RandomLines(acceleration=4, center_fraction=0.1), 40)
    assert (often[18:22] == 1).all()
    outer = torch.cat([often[:18], often[22:]])
    # 6 of 36 lines; five standard errors.
    assert (outer - 6 / 36).abs().max() < 5 * (1 / 6 * 5 / 6 / REPEATS) ** 0.5


def test_density_falls_with_the_distance_from_the_centre():
    often = how_often(VariableDensityLines(acceleration=4, center_fraction=0.12, decay=2), 41)
    mirrored = (often + often.flip(0)) / 2
    assert (often - mirrored).abs().max() < 5 * (0.5 / REPEATS) ** 0.5
    outer = mirrored[:18]
    assert (outer[1:] - outer[:-1] > -0.02).all()
    assert outer[-4:].mean() > 5 * outer[:4].mean()


def test_the_first_line_drawn_has_the_density_of_its_formula():
    # One line beside a centre of none: its density is that of the weights.
    often = how_often(VariableDensityLines(acceleration=9, center_fraction=0.01, decay=1.5), 9)
    weights = torch.tensor([(1 - abs(line - 4) / 5) ** 1.5 for line in range(9)], dtype=torch.float64)
    expected = weights / weights.sum()
    assert ((often - expected).abs() < 5 * (expected * (1 - expected) / REPEATS) ** 0.5).all()


def test_without_decay_every_line_is_as_likely():
    often = how_often(VariableDensityLines(acceleration=4, center_fraction=0.01, decay=0), 16)
    assert (often - 0.25).abs().max() < 5 * (0.25 * 0.75 / REPEATS) ** 0.5


def poisson(shape, key=1, **settings):
    """Return samples and holes beside the centre block, and how far each sample and hole is from other samples.

    Distances are divided by the relative spacing there; the nearer of two samples' is taken.
    """
    sampling = PoissonDisc(**settings)
    sampled = sampling(shape, torch_generator(key))

    def relative(places):
        middle = torch.tensor([side // 2 for side in shape])
        sides = torch.tensor(shape)
        return 1 + sampling.growth * ((places - middle) / (sides / 2)).norm(dim=1)

    counts = [round(sampling.center_fraction * side) for side in shape]
    block = torch.zeros(shape, dtype=torch.bool)
    (y, h), (x, w) = (((side - n + 1) // 2, n) for side, n in zip(shape, counts, strict=True))
    block[y : y + h, x : x + w] = True
    samples, holes, outer = (found.nonzero() for found in (sampled, ~sampled, sampled & ~block))
    tree = KDTree(samples.numpy())
    apart, neighbour = tree.query(outer.numpy(), k=2)
    spacing = torch.minimum(relative(outer), relative(samples[neighbour[:, 1]]))
    away, _ = tree.query(holes.numpy())
    return sampled, torch.tensor(apart[:, 1]) / spacing, torch.tensor(away) / relative(holes)


@pytest.mark.parametrize("shape", [(96, 96), (61, 128)])
@pytest.mark.parametrize("acceleration", [3, 6, 12])
@pytest.mark.parametrize("growth", [0.0, 2.0, 5.0])
def test_no_samples_lie_nearer_than_the_widest_hole_is_wide(shape, acceleration, growth):
    _, apart, away = poisson(shape, acceleration=acceleration, center_fraction=0.06, growth=growth)
    # Every hole has a sample within the distance that samples keep, up to the last step of the relaxation.
    assert apart.min() >= 0.95 * away.max() - 1e-9


def test_scattered_samples_keep_more_distance_than_random_ones():
    sampled, apart, _ = poisson((96, 96), acceleration=8, center_fraction=0.04, growth=1.0)
    random = torch.randperm(sampled.numel(), generator=torch_generator(1))[: int(sampled.sum())]
    places = torch.stack([random // 96, random % 96], 1)
    nearest = torch.tensor(KDTree(places.numpy()).query(places.numpy(), k=2)[0][:, 1])
    # How far the nearest neighbours' distances spread, in their mean.
    assert apart.std() / apart.mean() < 0.4 * nearest.std() / nearest.mean()


def test_density_falls_alike_in_all_directions():
    shape, repeats = (64, 64), 40
    sampling = PoissonDisc(acceleration=6, center_fraction=0.05, growth=2.0)
    generator = torch_generator(2)
    often = sum(sampling(shape, generator).double() for _ in range(repeats)) / repeats
    y, x = ((torch.arange(side) - side // 2) / (side / 2) for side in shape)
    radius = torch.hypot(y[:, None], x)
    rings = [often[(radius >= low) & (radius < low + 0.2)].mean() for low in (0.2, 0.4, 0.6, 0.8)]
    assert all(inner > outer for inner, outer in pairwise(rings))
    # As one over the square of the spacing, from ring to ring.
    assert rings[0] / rings[3] == pytest.approx(((1 + 2 * 0.9) / (1 + 2 * 0.3)) ** 2, rel=0.25)
    quarters = torch.stack([part.mean() for half in often.chunk(2) for part in half.chunk(2, 1)])
    assert (quarters / quarters.mean() - 1).abs().max() < 0.05


@pytest.mark.parametrize("growth", [0.0, 100.0, 1e6])
def test_any_growth_ends_with_the_samples_asked_for(growth):
    sampled = PoissonDisc(acceleration=3, center_fraction=0.02, growth=growth)((24, 17), torch_generator(1))
    assert sampled.sum() == round(24 * 17 / 3)


def test_a_block_that_rounding_makes_too_large_is_refused():
    with pytest.raises(ValueError, match="the centre alone, 16 of 196 places, exceeds the 15 to sample"):
        PoissonDisc(acceleration=13, center_fraction=0.25)((14, 14), torch_generator(1))


@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_falls_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="growth must be at least 0 and finite"):
        PoissonDisc(growth=wrong)
    with pytest.raises(ValueError, match="decay must be at least 0 and finite"):
        VariableDensityLines(decay=wrong)
