import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.reconstruction_runs import reconstruction
from voxelwave.errors import InputError
from voxelwave.jobs.reconstruct.picking import drawn_rate, pick_specialist
from voxelwave.physics.sampled_lines import acceleration_of, lines_of
from voxelwave.physics.samplings.equispaced import EquispacedLines
from voxelwave.registry import SAMPLINGS

RECIPE = {f"{anatomy}_acc{rate}": (anatomy, float(rate)) for anatomy in ("brain", "knee") for rate in (4, 8)}


@pytest.mark.parametrize("anatomy", ["brain", "knee"])
@pytest.mark.parametrize("rate", [4, 8])
@pytest.mark.parametrize("width", [320, 368, 396])
def test_the_mask_of_the_recipe_finds_its_specialist_in_silence(anatomy, rate, width, caplog):
    sampled = EquispacedLines(acceleration=rate, center_fraction=0.08, offset="origin")((2, width), torch.Generator())
    nominal = acceleration_of(sampled[0]).nominal
    assert pick_specialist(anatomy, nominal, RECIPE) == f"{anatomy}_acc{rate}"
    assert not caplog.records


@pytest.mark.parametrize(
    ("acceleration", "rate", "warned"),
    [(2, 4, True), (3.2, 4, False), (3.19, 4, True), (5, 4, False), (5.6, 4, True), (5.7, 8, True), (6.5, 8, False)],
)
def test_the_nearest_rate_on_a_logarithmic_scale_is_taken_and_one_that_is_far_is_warned_of(
    acceleration, rate, warned, caplog
):
    with caplog.at_level(logging.WARNING):
        assert pick_specialist("knee", acceleration, RECIPE) == f"knee_acc{rate}"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned


def test_of_two_that_are_as_near_the_lower_rate_is_taken_whatever_the_order():
    specialists = {"eight": ("knee", 8.0), "two": ("knee", 2.0)}
    assert pick_specialist("knee", 4.0, specialists) == "two"


rates = st.floats(1, 64)


@given(rates, st.dictionaries(st.text("abc", min_size=1), st.tuples(st.sampled_from(["brain", "knee"]), rates)))
def test_no_other_specialist_of_the_anatomy_is_nearer(acceleration, specialists):
    of = {name: rate for name, (anatomy, rate) in specialists.items() if anatomy == "knee"}
    if not of:
        with pytest.raises(InputError, match="no specialist is of 'knee'"):
            pick_specialist("knee", acceleration, specialists)
        return
    factors = {name: max(rate / acceleration, acceleration / rate) for name, rate in of.items()}
    assert factors[pick_specialist("knee", acceleration, specialists)] <= min(factors.values()) * (1 + 1e-9)


def test_an_anatomy_without_a_specialist_is_one_line_that_names_those_there_are():
    with pytest.raises(InputError, match="no specialist is of 'heart', they are of brain, knee: "):
        pick_specialist("heart", 4.0, RECIPE)
    with pytest.raises(InputError, match="they are of none"):
        pick_specialist("heart", 4.0, {})


@pytest.mark.parametrize("acceleration", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(acceleration):
    with pytest.raises(ValueError, match="rates lie above 0"):
        pick_specialist("knee", acceleration, RECIPE)


def test_the_rate_of_a_specialist_is_read_as_that_of_a_file(tmp_path):
    """fastMRI's masks keep the share of all lines, so that their lines lie further apart than their rate says."""
    drawn = {}
    for rate in (4, 8):
        sampling = {"name": "fastmri", "kind": "equispaced_fraction", "acceleration": rate, "center_fraction": 0.1}
        config = reconstruction(tmp_path, tmp_path, blocks=[{"epochs": 1, "samplings": [sampling]}])
        drawn[rate] = drawn_rate(config, 368)
        lines = lines_of(SAMPLINGS.build(sampling.pop("name"), **sampling).of_file((1, 368), "file"))
        assert acceleration_of(lines).nominal == pytest.approx(drawn[rate], rel=0.2)
    assert drawn[4] > 5
    assert drawn[8] > 1.5 * drawn[4]
