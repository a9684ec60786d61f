import pytest
import torch

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.segmentation import SegmentationModel, _from_octets, _octets
from voxelwave.ops.wavelets import haar, inverse_haar


def model(patch_size=4, in_channels=(1,), num_classes=3, width=4):
    torch.manual_seed(0)
    backbone = WaveFormer3D(in_channels, patch_size=patch_size, embed_dim=24, depth=2, num_heads=2)
    return SegmentationModel(FeaturePyramid(backbone), num_classes=num_classes, width=width)


@pytest.mark.parametrize(
    ("patch_size", "shape"), [(4, (8, 16, 12)), (8, (16, 8, 24)), (6, (12, 6, 18)), (1, (4, 3, 5))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_voxel_gets_logits_whatever_the_patch_size(patch_size, shape, channels):
    segment = model(patch_size, (1, 3))
    assert segment(torch.rand(2, channels, *shape)).shape == (2, 3, *shape)


def test_octets_are_neighbours_in_the_order_of_the_wavelets():
    grid = torch.randn(2, 3, 4, 6, 2)
    octets = _octets(grid)
    for offset in range(8):
        d, h, w = offset // 4, offset // 2 % 2, offset % 2
        assert torch.equal(octets[..., offset, :], grid[:, :, d::2, h::2, w::2].movedim(1, -1))
    assert torch.equal(_from_octets(octets), grid)
    torch.testing.assert_close(_from_octets(inverse_haar(haar(octets))), grid)


def test_what_is_fine_in_the_image_reaches_the_voxels_though_no_token_says_it():
    segment = model().eval()
    for parameter in segment.join.parameters():
        parameter.data.zero_()  # nothing comes from the tokens
    volume = torch.zeros(1, 1, 8, 8, 8)
    volume[..., 3, 3, 3] = 1
    changed = (segment(volume) - segment(torch.zeros_like(volume))).abs().amax(1)[0]
    assert changed[3, 3, 3] > 0
    assert changed.argmax() == 3 * 64 + 3 * 8 + 3


@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_is_the_inverse_transform_of_predicted_bands_and_those_of_the_image(channels):
    step = model(in_channels=(1, 3)).steps[0].double()
    step.refine = torch.nn.Identity()
    x = torch.randn(2, 16, 3, 4, 5, dtype=torch.float64)
    octets = torch.randn(2, 3, 4, 5, 8, channels, dtype=torch.float64)
    predicted = step.predict(x.movedim(1, -1)).unflatten(-1, (8, 8))
    of_image = step.image[str(channels)](haar(octets) / 8**0.5)
    torch.testing.assert_close(step(x, octets), _from_octets(inverse_haar(predicted + of_image)))


def test_the_image_is_seen_at_every_scale_and_keeps_its_means():
    seen = {}
    segment = model()
    for number, step in enumerate(segment.steps):
        step.register_forward_pre_hook(lambda _, args, number=number: seen.update({number: args[1]}))
    volume = torch.rand(1, 1, 8, 8, 8)
    segment(volume)
    # Coarse to fine.
    torch.testing.assert_close(_from_octets(seen[0]), torch.nn.functional.avg_pool3d(volume, 2))
    torch.testing.assert_close(_from_octets(seen[1]), volume)


def test_every_weight_but_the_other_modalitys_learns():
    segment = model(in_channels=(1, 3))
    segment(torch.rand(1, 1, 8, 8, 8)).square().mean().backward()
    idle = {name for name, parameter in segment.named_parameters() if parameter.grad is None}
    assert idle == {
        *("steps.0.image.3.weight", "steps.1.image.3.weight"),
        *("features.backbone.stems.3.weight", "features.backbone.stems.3.bias", "features.backbone.mask_token"),
    }


def test_what_cannot_be_segmented_is_refused():
    with pytest.raises(ValueError, match="num_classes is at least 2"):
        model(num_classes=1)
    with pytest.raises(ValueError, match="not divisible by patch size 4"):
        model()(torch.rand(1, 1, 8, 8, 9))
