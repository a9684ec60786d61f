import pytest
import torch

from support.undersampled import undersampled
from voxelwave.unrolled.image_unet import ImageUnet


def test_it_has_as_many_parameters_as_the_baseline_of_fastmri():
    with torch.device("meta"):
        network = ImageUnet(num_slices=1)
    # fastMRI, section 6.2: 7.76 million with 32 channels.
    assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(7.76, rel=0.01)


def test_a_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    kspace, sampled, *_ = undersampled()
    network = ImageUnet(channels=4, depth=2)
    network(kspace, sampled).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_another_number_of_slices_is_refused():
    kspace, sampled, *_ = undersampled(slices=1)
    with pytest.raises(ValueError, match="3 slices together, got 1"):
        ImageUnet(channels=4, depth=2)(kspace, sampled)
    with pytest.raises(ValueError, match="num_slices odd, got 32, 4 and 2"):
        ImageUnet(num_slices=2)
