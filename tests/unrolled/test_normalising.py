import numpy as np
import pytest
import torch

from voxelwave.ops.seeding import torch_generator
from voxelwave.unrolled.normalising import as_channels, as_groups, normalised


def test_real_parts_come_before_imaginary_parts():
    image = torch.randn(2, 3, 4, 5, dtype=torch.complex64, generator=torch_generator(0))
    channels = as_channels(image)
    assert channels[:, :3].equal(image.real)
    assert channels[:, 3:].equal(image.imag)
    assert as_groups(channels).equal(image)


@pytest.mark.parametrize("shape", [(90, 74), (16, 8), (5, 7)])
def test_a_sample_has_one_mean_and_one_deviation_and_comes_back_in_its_size(shape):
    channels = 3 + 2e-4 * torch.randn(2, 4, *shape, dtype=torch.float64, generator=torch_generator(0))
    channels[1] *= 10
    padded, undo = normalised(channels, multiple=8)
    assert padded.shape[-2:] == tuple(-(-side // 8) * 8 for side in shape)
    top, left = ((padded.shape[axis] - channels.shape[axis]) // 2 for axis in (2, 3))
    inside = padded[..., top : top + shape[0], left : left + shape[1]].numpy()
    wanted = [(sample - sample.mean()) / sample.std(ddof=1) for sample in channels.numpy()]
    np.testing.assert_allclose(inside, np.stack(wanted), atol=1e-9)
    assert padded.square().sum().item() == pytest.approx(float((inside**2).sum()))
    torch.testing.assert_close(undo(padded), channels, rtol=1e-12, atol=0)


def test_nothing_gives_nothing_with_a_gradient_whatever_the_network_says():
    channels = torch.zeros(1, 2, 9, 9, requires_grad=True)
    padded, undo = normalised(channels, multiple=8)
    output = undo(padded + 7)
    assert (output == 0).all()
    output.sum().backward()
    assert channels.grad.isfinite().all()
