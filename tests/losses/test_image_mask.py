import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, binary_erosion

from voxelwave.losses.image_mask import THRESHOLDS, challenge_mask, dilate, erode
from voxelwave.ops.seeding import torch_generator


def by_loops(inside, *, grow):
    """One step of a 3 × 3 neighbourhood, in which what lies outside of the image has no say."""
    found = np.zeros_like(inside)
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            around = inside[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            found[y, x] = around.any() if grow else around.all()
    return found


def anatomy(kind, *, shape=(70, 64)):
    """A body that touches an edge, with holes, specks beside it and noise."""
    generator = torch_generator("anatomy")
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    body = (y - 10) ** 2 + (x - 30) ** 2 < 24**2
    body &= (y - 12) ** 2 + (x - 28) ** 2 > 9**2
    noise = torch.rand(shape, generator=generator)
    return THRESHOLDS[kind] * torch.where(body, 1.5 + noise, torch.where(noise > 0.97, 1.2, 0.4 * noise))[None]


@pytest.mark.parametrize("kind", ["brain", "knee"])
def test_it_is_the_challenge_step_by_step(kind):
    target = anatomy(kind)
    inside = target[0].numpy() > {"brain": 5e-5, "knee": 2e-5}[kind]
    for grow in [False, *[True] * 15, *[False] * 14]:
        inside = by_loops(inside, grow=grow)
    found = challenge_mask(target, anatomy=kind)
    np.testing.assert_array_equal(found[0], inside)
    assert 0 < inside.mean() < 1
    # The body reaches the edge of the image, and so does the mask; the hole in it is closed.
    assert found[0, 0, 30]
    assert found[0, 12, 28]


def test_an_object_at_the_edge_keeps_its_border_unlike_with_zeros_outside():
    target = torch.zeros(1, 60, 60)
    target[:, :20] = 1e-3
    inside = target[0].numpy() > 2e-5
    square = np.ones((3, 3))
    outside = {}
    for border in (0, 1):
        step = binary_erosion(inside, square, 1, border_value=border)
        step = binary_dilation(step, square, 15)
        outside[border] = binary_erosion(step, square, 14, border_value=border)
    found = challenge_mask(target, anatomy="knee")[0]
    np.testing.assert_array_equal(found, outside[1])
    assert outside[1].sum() > 2 * outside[0].sum()


@pytest.mark.parametrize("times", [1, 3, 40])
def test_times_are_repeated_single_steps_also_beyond_the_image(times):
    inside = torch.rand(2, 17, 13, generator=torch_generator(0)) > 0.5
    for one, grow in ((dilate, True), (erode, False)):
        wanted = inside.numpy()
        for _ in range(times):
            wanted = np.stack([by_loops(image, grow=grow) for image in wanted])
        np.testing.assert_array_equal(one(inside, times=times), wanted)


def test_slices_without_signal_have_nothing_inside():
    assert not challenge_mask(torch.zeros(2, 40, 40), anatomy="brain").any()
