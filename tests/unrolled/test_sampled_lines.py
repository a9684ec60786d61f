import pytest
import torch

from voxelwave.physics.samplings import center_band
from voxelwave.unrolled.sampled_lines import center_lines, num_center_lines, sampled_places


def lines(text):
    return torch.tensor([[sign == "x" for sign in row] for row in text.split()])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x..xxxx..x", 4),  # 3…6 around line 5
        ("x..xxxxx.x", 4),  # the longer side is cut
        (".....x....", 1),
        ("....xx....", 2),
        ("xxxxxxxxxx", 10),
        ("xxxxxxxxx", 8),  # odd: four on the left, line 4 and three more on the right
    ],
)
def test_the_lines_without_a_gap_around_the_origin_are_counted(text, count):
    assert num_center_lines(lines(text)).tolist() == [count]


def test_each_sample_has_its_own_centre_and_places_are_read_in_the_row_of_the_origin():
    sampled = lines("x..xxxx..x ....xx....")
    assert num_center_lines(sampled).tolist() == [4, 2]
    places = torch.zeros(2, 5, 10, dtype=torch.bool)
    places[:, 2] = sampled
    assert num_center_lines(places).tolist() == [4, 2]


def test_a_line_of_the_origin_that_is_not_sampled_is_named():
    with pytest.raises(ValueError, match="line of the origin, 5 of 10, is not sampled"):
        num_center_lines(lines("xxxxx.xxxx"))


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
