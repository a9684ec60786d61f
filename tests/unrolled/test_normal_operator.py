import pytest
import torch

from support.tiny_unets import TINY_SENSITIVITY
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import MultiCoilAcquisition
from voxelwave.physics.sampled_lines import sampled_places
from voxelwave.unrolled.normal_operator import NormalOperator
from voxelwave.unrolled.sensitivity import SensitivityNetwork


def values(*shape, key, dtype=torch.complex64):
    return torch.randn(shape, dtype=dtype, generator=torch_generator(key))


@pytest.fixture(params=[(8, 6), (7, 9)])
def shape(request):
    return request.param


@pytest.fixture(params=["lines", "places"])
def case(request, shape):
    """Maps of two samples and three slices, and what is sampled."""
    size = shape[1:] if request.param == "lines" else shape
    return values(2, 3, 4, *shape, key="maps"), torch.rand(2, *size, generator=torch_generator("sampled")) < 0.5


def test_it_is_the_acquisition_and_then_its_adjoint(case, shape):
    maps, sampled = case
    image = values(2, 3, *shape, key="image")
    acquisition = MultiCoilAcquisition(maps, sampled_places(sampled, shape[0])[:, None])
    wanted = acquisition.adjoint(acquisition.forward(image))
    torch.testing.assert_close(NormalOperator(maps, sampled)(image), wanted, rtol=1e-5, atol=1e-5)


def test_it_is_its_own_adjoint(case, shape):
    operator = NormalOperator(*case)
    x, y = (values(2, 3, *shape, key=key) for key in "xy")
    there, back = torch.vdot(operator(x).flatten(), y.flatten()), torch.vdot(x.flatten(), operator(y).flatten())
    assert abs(there - back) < 1e-5 * x.norm() * y.norm()


def test_the_acquisition_with_estimated_maps_has_its_adjoint(shape):
    torch.manual_seed(0)
    kspace = values(1, 3, 4, *shape, key="kspace")
    sampled = torch.ones(1, shape[1], dtype=torch.bool)
    maps = SensitivityNetwork(num_slices=3, shape=TINY_SENSITIVITY)(kspace, sampled).detach()
    acquisition = MultiCoilAcquisition(maps, sampled_places(sampled, shape[0])[:, None])
    x, y = values(1, 3, *shape, key="x"), values(1, 3, 4, *shape, key="y")
    there = torch.vdot(acquisition.forward(x).flatten(), y.flatten())
    back = torch.vdot(x.flatten(), acquisition.adjoint(y).flatten())
    assert abs(there - back) < 1e-5 * x.norm() * y.norm()
