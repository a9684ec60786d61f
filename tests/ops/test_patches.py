import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from voxelwave.ops.patches import nested_order, patchify, token_grid, unpatchify


def test_patches_are_cubes_in_raster_order():
    volume = torch.arange(2 * 3 * 4 * 6 * 8, dtype=torch.float32).view(2, 3, 4, 6, 8)
    patches = patchify(volume, 2)
    for d, h, w in ((0, 0, 0), (1, 0, 2), (1, 2, 3)):
        cube = volume[:, :, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        torch.testing.assert_close(patches[:, (d * 3 + h) * 4 + w], cube.flatten(2))


@settings(deadline=None, max_examples=20)
@given(grid=st.tuples(*[st.integers(1, 5)] * 3), patch=st.integers(1, 4), channels=st.sampled_from([1, 3]))
def test_unpatchify_inverts_patchify(grid, patch, channels):
    volume = torch.rand(2, channels, *(side * patch for side in grid))
    assert torch.equal(unpatchify(patchify(volume, patch), grid), volume)


def test_a_patch_that_does_not_divide_the_volume_is_named():
    with pytest.raises(ValueError, match="10×8×8 voxels is not divisible by patch size 4"):
        token_grid((1, 10, 8, 8), 4)


@pytest.mark.parametrize("grid", [(4, 4, 4), (8, 4, 12)])
def test_nested_order_makes_cubes_of_each_run(grid):
    order = nested_order(grid, 2)
    assert sorted(order.tolist()) == list(range(grid[0] * grid[1] * grid[2]))
    places = torch.stack(torch.unravel_index(order, grid), 1)
    for run in (8, 64):
        for cube in places.split(run):
            span = cube.amax(0) - cube.amin(0)
            assert span.tolist() == [round(run ** (1 / 3)) - 1] * 3


def test_an_order_first_asked_for_while_a_model_is_traced_holds_values_afterwards():
    with FakeTensorMode():
        nested_order((2, 4, 14), 1)
    assert nested_order((2, 4, 14), 1).tolist()[:8] == [0, 1, 14, 15, 56, 57, 70, 71]
