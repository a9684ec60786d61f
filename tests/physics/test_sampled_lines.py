import pytest
import torch

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.sampled_lines import (
    acceleration_of,
    center_lines,
    lines_of,
    num_center_lines,
    sampled_places,
)
from voxelwave.physics.samplings import center_band
from voxelwave.physics.samplings.equispaced import EquispacedLines
from voxelwave.physics.samplings.fastmri import FastMRILines
from voxelwave.physics.samplings.random_spaced import RandomSpacedLines


def fixed(acceleration, width=368):
    """The lines of a fixed pattern with 8 % centre."""
    sampling = EquispacedLines(acceleration=acceleration, center_fraction=0.08, offset="origin")
    return sampling((1, width), torch_generator(0))[0]


@pytest.mark.parametrize(("acceleration", "effective"), [(4, 3.23), (8, 5.11)])
def test_a_fixed_pattern_over_368_columns_with_8_percent_centre_saves_less_than_it_says(acceleration, effective):
    found = acceleration_of(fixed(acceleration))
    assert found.nominal == acceleration
    assert found.effective == pytest.approx(effective, abs=0.005)


def test_the_origin_is_a_line_of_the_fixed_pattern():
    for width in (60, 61, 368, 371):
        for acceleration in (3, 4, 8):
            lines = fixed(acceleration, width).nonzero()[:, 0].tolist()
            assert {line for line in range(width) if (line - width // 2) % acceleration == 0} <= set(lines)
    with pytest.raises(ValueError, match="a whole number"):
        EquispacedLines(acceleration=2.5, offset="origin")


@pytest.mark.parametrize("acceleration", [4, 8])
def test_random_bins_tell_their_width(acceleration):
    sampling = RandomSpacedLines(acceleration=acceleration, center_fraction=0.08)
    for key in range(30):
        found = acceleration_of(sampling((1, 368), torch_generator(key))[0])
        assert abs(found.nominal - acceleration) < 0.15 * acceleration


@pytest.mark.parametrize("kind", ["equispaced", "equispaced_fraction", "magic", "magic_fraction"])
def test_a_rate_of_lines_that_are_evenly_spaced_has_no_error(kind):
    for key in range(10):
        lines = FastMRILines(kind=kind, acceleration=4)((1, 368), torch_generator(key))[0]
        assert acceleration_of(lines).error == 0


@pytest.mark.parametrize("acceleration", [4.0, 8.0])
def test_the_error_of_a_rate_of_random_lines_is_that_over_draws(acceleration):
    sampling = FastMRILines(kind="random", acceleration=acceleration, center_fraction=0.04)
    found = [acceleration_of(sampling((1, 368), torch_generator(key))[0]) for key in range(400)]
    logs = torch.tensor([of.nominal for of in found]).log()
    errors = torch.tensor([of.error for of in found])
    assert float(errors.mean()) == pytest.approx(float(logs.std()), rel=0.2)
    assert float(((logs - logs.mean()).abs() < 3 * errors).float().mean()) > 0.98


@pytest.mark.parametrize("width", [40, 43])
def test_one_line_of_every_bin_is_sampled_and_each_as_often(width):
    sampling = RandomSpacedLines(acceleration=4, center_fraction=0.01)
    generator = torch_generator(1)
    masks = torch.stack([sampling((1, width), generator)[0] for _ in range(2000)])
    assert (masks[:, :40].unflatten(1, (10, 4)).sum(2) == 1).all()
    # Five standard errors; the bin that the edge cuts gives a line in three draws of four.
    assert (masks.double().mean(0) - 0.25).abs().max() < 5 * (0.25 * 0.75 / 2000) ** 0.5


def test_the_centre_is_twice_the_shorter_side():
    sampled = torch.zeros(16, dtype=torch.bool)
    sampled[[5, 6, 7, 8, 9, 10, 11, 14]] = True
    assert num_center_lines(sampled) == 6  # three on the left of line 8, four from it on
    assert num_center_lines(torch.ones(7, dtype=torch.bool)) == 7
    sampled[8] = False
    assert num_center_lines(sampled) == 0


def test_margins_that_were_not_measured_do_not_count_in_the_nominal_rate():
    lines = fixed(4)
    lines[:40] = False
    lines[-23:] = False
    assert acceleration_of(lines).nominal == 4


def test_where_nothing_is_left_to_measure_gaps_of_the_effective_rate_stands_for_both():
    sampled = torch.zeros(20, dtype=torch.bool)
    sampled[8:12] = True
    assert acceleration_of(sampled) == (5, 5, 0)
    assert acceleration_of(torch.ones(20, dtype=torch.bool)) == (1, 1, 0)
    with pytest.raises(ValueError, match="none is sampled"):
        acceleration_of(torch.zeros(20, dtype=torch.bool))


def test_single_places_are_no_lines():
    sampled = torch.zeros(3, 4, dtype=torch.bool)
    assert not lines_of(sampled).any()
    sampled[1, 2] = True
    with pytest.raises(ValueError, match="its rows differ"):
        lines_of(sampled)


def lines(text):
    return torch.tensor([[sign == "x" for sign in row] for row in text.split()])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x..xxxx..x", "...xxxx..."),  # around line 5
        ("x..xxxxx.x", "...xxxx..."),  # the longer side is cut
        (".....x....", ".....x...."),
        ("....xx....", "....xx...."),
        ("xxxxxxxxxx", "xxxxxxxxxx"),
        ("xxxxxxxxx", "xxxxxxxxx"),
        (".xxxxxx..", ".xxxxxx.."),  # of an odd width: three on the left of line 4, line 4 and two more
    ],
)
def test_the_lines_without_a_gap_around_the_origin_are_found(text, found):
    assert center_lines(lines(text)).equal(lines(found))


def test_each_sample_has_its_own_centre_and_places_are_read_in_the_row_of_the_origin():
    sampled, found = lines("x..xxxx..x ....xx...."), lines("...xxxx... ....xx....")
    assert num_center_lines(sampled).tolist() == [4, 2]
    assert center_lines(sampled).equal(found)
    places = torch.zeros(2, 5, 10, dtype=torch.bool)
    places[:, 2] = sampled
    assert center_lines(places).equal(found)


def test_a_line_of_the_origin_that_is_not_sampled_is_named():
    with pytest.raises(ValueError, match="line of the origin, 5 of 10, is not sampled"):
        center_lines(lines("xxxxx.xxxx"))


@pytest.mark.parametrize("width", [9, 10])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_the_centre_is_that_of_the_samplings(width, count):
    wanted = torch.zeros(width, dtype=torch.bool)
    wanted[center_band(width, count / width)] = True
    assert center_lines(torch.ones(2, width, dtype=torch.bool), count).equal(wanted.repeat(2, 1))


@pytest.mark.parametrize("count", [0, 11])
def test_a_centre_that_does_not_fit_is_refused(count):
    with pytest.raises(ValueError, match=rf"must be 1 to 10, the width, got \[{count}\]"):
        center_lines(lines("xxxxxxxxxx"), count)


def test_places_of_another_height_are_refused():
    with pytest.raises(ValueError, match="with a height of 7"):
        sampled_places(torch.ones(1, 6, 5, dtype=torch.bool), 7)
