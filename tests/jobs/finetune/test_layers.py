import pytest
import torch

from voxelwave.backbones.residual_cnn import ResidualCNN
from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.downstream.classification import ClassificationModel
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.segmentation import SegmentationModel
from voxelwave.jobs.finetune.layers import freeze, parameter_groups

DEPTH = 3
BACKBONES = {
    "waveformer": lambda: WaveFormer3D((1, 3), patch_size=4, embed_dim=12, depth=DEPTH, num_heads=2),
    "residual_cnn": lambda: ResidualCNN((1, 3), patch_size=4, embed_dim=12, depth=DEPTH),
}


def model(kind, backbone="waveformer"):
    features = FeaturePyramid(BACKBONES[backbone]())
    if kind == "segmentation":
        return SegmentationModel(features, num_classes=3, width=4)
    return ClassificationModel(features, num_targets=2)


def layer_of(name):
    """The layer of a parameter: 0 for the patch embedding, 1 to n for the blocks, n + 1 for the head."""
    name = name.removeprefix("features.backbone.")
    if name.startswith(("stems", "mask_token", "to_tokens")):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return DEPTH if name.startswith("norm.") else DEPTH + 1


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", ["segmentation", "classification"])
@pytest.mark.parametrize(("decay", "scale_of_all"), [(0.5, 1.0), (0.75, 0.1), (1.0, 1.0), (1.0, 0.1)])
def test_every_depth_learns_at_the_rate_of_the_formula(backbone, kind, decay, scale_of_all):
    of = model(kind, backbone)
    names = {id(parameter): name for name, parameter in of.named_parameters()}
    seen = {}
    for group in parameter_groups(of, weight_decay=0.1, layer_decay=decay, lr_scale=scale_of_all):
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["lr_scale"], group["weight_decay"])
    assert seen.keys() == dict(of.named_parameters()).keys()
    for name, parameter in of.named_parameters():
        scale, weight_decay = seen[name]
        below = DEPTH + 1 - layer_of(name)
        assert scale == pytest.approx(decay**below * (scale_of_all if below else 1)), name
        assert weight_decay == (0.1 if parameter.ndim > 1 else 0.0), name


def test_of_a_frozen_backbone_nothing_is_trained():
    of = model("segmentation").train()
    freeze(of.features)
    groups = parameter_groups(of, weight_decay=0.1, layer_decay=0.5)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(p) for name, p in of.named_parameters() if not name.startswith("features.")}
    assert {group["lr_scale"] for group in groups} == {1.0}
    assert not any(module.training for module in of.features.modules())
    assert of.join.training
    of(torch.rand(1, 1, 8, 8, 8)).sum().backward()
    assert all(parameter.grad is None for parameter in of.features.parameters())
