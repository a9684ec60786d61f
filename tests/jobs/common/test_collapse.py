import io
import math

import pytest
import torch

from voxelwave.jobs.common.collapse import CollapseWatch
from voxelwave.jobs.common.console import Console
from voxelwave.losses.place_contrast import PlaceContrast
from voxelwave.losses.spatial_infonce import SpatialInfoNCE


def said(watch_with):
    """What a watch says at the end of two epochs, in each of which `watch_with` is called with it."""
    console = Console(file=io.StringIO())
    watch = CollapseWatch(console, remedy="Do something.")
    for epoch in (1, 2):
        watch_with(watch)
        watch.end_epoch(epoch)
    return console.file.getvalue().splitlines()


def spatial(alike):
    loss = SpatialInfoNCE((4, 4), projection_dim=16)
    grids = torch.zeros(2, 2, 4, 3, 3, 3)
    if not alike:
        loss.shallow, loss.deep = torch.nn.Identity(), torch.nn.Identity()
        grids[:] = torch.randn(2, 4, 3, 3, 3)
    counted = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    counted[0, 0] = False
    return loss, (*grids, counted), (18 * math.log(18) + 27 * math.log(27)) / 45


def places(alike):
    features = torch.zeros(2, 6, 4) if alike else torch.randn(6, 4).expand(2, 6, 4)
    places_mm = 10.0 * torch.arange(6)[:, None].expand(6, 3)
    # In the other view 6 places, of which one is that which is to be found, and 5 others in its own.
    return PlaceContrast(4), (*features, places_mm, torch.zeros(6, dtype=torch.long)), math.log(11)


@pytest.mark.parametrize("case", [spatial, places])
def test_a_loss_of_identical_vectors_is_said_once_with_its_value_and_what_to_do(case):
    torch.manual_seed(0)
    loss, inputs, identical = case(alike=True)

    def look(watch):
        with watch.watching(loss):
            loss(*inputs)

    (line,) = said(look)
    assert f"at the end of epoch 1 is {identical:.3f}, and it would be {identical:.3f} if all vectors" in line
    assert line.endswith("Do something.")


@pytest.mark.parametrize("case", [spatial, places])
def test_one_that_tells_places_apart_is_not(case):
    torch.manual_seed(0)
    loss, inputs, _ = case(alike=False)

    def look(watch):
        with watch.watching(loss):
            loss(*inputs)

    assert said(look) == []


def test_nothing_is_said_where_nothing_was_seen_or_wanted_and_no_hook_is_left():
    loss, inputs, _ = places(alike=True)

    def look(watch):
        with watch.watching(None), watch.watching(loss, wanted=False):
            loss(*inputs)

    assert said(look) == []
    assert said(lambda watch: watch.saw(0.0, 0.0)) == []
    assert not loss._forward_hooks
