"""Checks that every registered sampling passes alike, whoever wrote it."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.samplings import Sampling
from voxelwave.registry import SAMPLINGS

SHAPES = [(32, 32), (33, 47), (16, 61), (64, 40)]
# What makes the number of samples exact, where it is not by itself, and the draws random, where they are not.
EXACT = {"equispaced": {"exact": True}}
RANDOM = {"equispaced": {"offset": None}}
# Those whose number is right on average only: fastMRI's masks are what they are, and so are random bins with a centre.
INEXACT = ("fastmri", "random_spaced")
# Samplings of single places; the others choose lines along the width.
OF_PLACES = ("poisson_disc",)

every_sampling = pytest.mark.parametrize("name", SAMPLINGS.names())
every_shape = pytest.mark.parametrize("shape", SHAPES)


def centre(name, shape, center_fraction):
    """Return the rows and the columns of the centre."""
    # Those nearest to the middle, and of two the one that follows it: n // 2 is the origin.
    rows, columns = (
        sorted(range(side), key=lambda line, side=side: abs(line - (side - 1) / 2 - 0.25))[
            : round(center_fraction * side)
        ]
        for side in shape
    )
    return (rows if name in OF_PLACES else range(shape[0])), columns


@every_sampling
def test_it_is_a_sampling_with_at_most_eight_settings_each_with_a_default(name):
    parameters = inspect.signature(SAMPLINGS.get(name)).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    assert all(p.default is not inspect.Parameter.empty for p in parameters)
    assert len(parameters) <= 8
    assert SAMPLINGS.get(name).__doc__
    assert isinstance(SAMPLINGS.build(name), Sampling)


@every_sampling
@every_shape
@pytest.mark.parametrize("center_fraction", [0.04, 0.1, 0.2])
def test_it_says_of_every_place_whether_it_is_sampled_and_the_centre_is(name, shape, center_fraction):
    sampled = SAMPLINGS.build(name, acceleration=4, center_fraction=center_fraction)(shape, torch_generator(1))
    assert (sampled.shape, sampled.dtype, sampled.device.type) == (shape, torch.bool, "cpu")
    rows, columns = centre(name, shape, center_fraction)
    assert all(sampled[row, column] for row in rows for column in columns)
    if name not in OF_PLACES:
        assert torch.equal(sampled, sampled[:1].expand(shape))
    # No two places share memory: the result can be written to.
    kept = sampled[1:].clone()
    sampled[0] = ~sampled[0]
    assert torch.equal(sampled[1:], kept)


@every_sampling
@every_shape
@pytest.mark.parametrize("acceleration", [1, 2, 3.7, 8, 12])
def test_the_number_of_samples_is_exact(name, shape, acceleration):
    if name in INEXACT:
        pytest.skip("exact on average only")
    settings = {"acceleration": acceleration, "center_fraction": 0.06, **EXACT.get(name, {})}
    sampled = SAMPLINGS.build(name, **settings)(shape, torch_generator(1))
    num_places = math.prod(shape) if name in OF_PLACES else shape[1]
    found = sampled.sum() if name in OF_PLACES else sampled[0].sum()
    assert found == round(num_places / acceleration)


@every_sampling
def test_the_same_state_of_the_generator_gives_the_same_result_and_another_another(name):
    sampling = SAMPLINGS.build(name, **RANDOM.get(name, {}))
    first, again = (sampling((24, 64), torch_generator(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert any(not torch.equal(first, sampling((24, 64), torch_generator(key))) for key in range(2, 8))


@every_sampling
def test_acceleration_1_and_a_centre_that_is_all_sample_everything(name):
    for settings in ({"acceleration": 1}, {"acceleration": 1, "center_fraction": 1}):
        assert SAMPLINGS.build(name, **settings, **EXACT.get(name, {}))((6, 7), torch_generator(1)).all()


@every_sampling
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_sides_of_one_place_are_sampled(name, shape):
    assert SAMPLINGS.build(name, acceleration=1, center_fraction=0.5)(shape, torch_generator(1)).all()


@every_sampling
@pytest.mark.parametrize("acceleration", [0, -1, 0.99, math.nan, math.inf])
def test_an_acceleration_below_1_is_refused(name, acceleration):
    with pytest.raises(ValueError, match="acceleration must be finite and at least 1"):
        SAMPLINGS.get(name)(acceleration=acceleration)


@every_sampling
@pytest.mark.parametrize("center_fraction", [0, -0.1, 1.01, math.nan])
def test_a_centre_fraction_outside_0_to_1_is_refused(name, center_fraction):
    with pytest.raises(ValueError, match="center_fraction must be above 0 and at most 1"):
        SAMPLINGS.get(name)(center_fraction=center_fraction)


@every_sampling
def test_an_acceleration_beyond_the_number_of_lines_or_places_is_refused(name):
    height, of = (1, "places") if name in OF_PLACES else (32, "lines")
    sampling = SAMPLINGS.build(name, acceleration=16.5, center_fraction=0.01)
    with pytest.raises(ValueError, match=rf"at most the number of {of}, got 16\.5 for 16"):
        sampling((height, 16), torch_generator(1))


@pytest.mark.parametrize("name", [name for name in SAMPLINGS.names() if name != "random_spaced"])
def test_a_centre_beyond_what_an_exact_sampling_may_take_is_refused(name):
    with pytest.raises(ValueError, match=r"the centre alone.*lower center_fraction or acceleration"):
        SAMPLINGS.get(name)(acceleration=4, center_fraction=0.6, **EXACT.get(name, {}))
    with pytest.raises(InputError, match=r"sampling.*cannot be built"):
        SAMPLINGS.build(name, acceleration=4, center_fraction=0.6, **EXACT.get(name, {}))
