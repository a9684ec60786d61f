import numpy as np
import pytest
import torch

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.downstream.classification import ClassificationModel, predict_targets, whole
from voxelwave.downstream.features import FeaturePyramid

SETTINGS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def model(**settings):
    torch.manual_seed(0)
    return ClassificationModel(FeaturePyramid(WaveFormer3D((1,), **SETTINGS)), num_targets=3, **settings)


def features_of(of, volume):
    """[batch, token, channel] of all levels, as NumPy."""
    levels = [level.flatten(2).detach().numpy() for level in of.features(volume)]
    return np.concatenate(levels, axis=1).transpose(0, 2, 1)


def test_attention_pooling_is_the_weighted_mean_of_the_paper():
    of, volume = model(), torch.rand(2, 1, 8, 12, 8)
    torch.nn.init.normal_(of.attend[2].weight)
    first, _, second = of.attend
    numbers = {name: value.detach().numpy() for name, value in of.state_dict().items()}
    expected = np.zeros((2, 3))
    for sample, tokens in enumerate(features_of(of, volume)):
        for target in range(3):
            scores = []
            for token in tokens:
                inner = np.tanh(first.weight.detach().numpy() @ token + first.bias.detach().numpy())
                scores.append(second.weight.detach().numpy()[target] @ inner)
            weights = np.exp(scores) / np.exp(scores).sum()
            pooled = sum(weight * token for weight, token in zip(weights, tokens, strict=True))
            expected[sample, target] = numbers["classify.weight"][target] @ pooled + numbers["classify.bias"][target]
    np.testing.assert_allclose(of(volume).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_attention_begins_as_the_mean():
    attention, mean, volume = model(), model(pooling="mean"), torch.rand(2, 1, 8, 12, 8)
    mean.classify.load_state_dict(attention.classify.state_dict())
    expected = mean.classify(torch.from_numpy(features_of(mean, volume).mean(1)))
    torch.testing.assert_close(mean(volume), expected)
    torch.testing.assert_close(attention(volume), expected)


def test_each_target_looks_where_it_wants():
    of = model()
    torch.nn.init.normal_(of.attend[2].weight)
    of(torch.rand(1, 1, 8, 8, 8))[0, 0].backward()
    assert of.attend[2].weight.grad[0].abs().max() > 0
    assert of.attend[2].weight.grad[1:].abs().max() == 0


@pytest.mark.parametrize("settings", [{"pooling": "max"}, {"num_targets": 0}])
def test_settings_that_cannot_be_are_refused(settings):
    features = FeaturePyramid(WaveFormer3D((1,), **SETTINGS))
    with pytest.raises(ValueError, match="num_targets is at least 1 and pooling"):
        ClassificationModel(features, **{"num_targets": 3, **settings})


def test_a_volume_is_shown_whole_whatever_its_size():
    small, large = torch.rand(1, 5, 8, 7), torch.rand(1, 32, 16, 24)
    padded = whole(small, (8, 8, 8))
    assert torch.equal(padded[:, 1:6, :, :7], small)
    assert float(padded.sum()) == pytest.approx(float(small.sum()))
    shrunk = whole(large, (8, 8, 8))
    assert shrunk.shape == (1, 8, 8, 8)
    # Halves of the proportions 4 : 2 : 3 in a cube of 8: a quarter of each side, in the middle.
    torch.testing.assert_close(shrunk[:, :, 2:6, 1:7], torch.nn.functional.avg_pool3d(large, 4))


def test_a_prediction_is_that_of_the_whole_volume_and_leaves_the_modes_alone():
    of, volume = model(), torch.rand(1, 12, 16, 20)
    of.features.eval()
    expected = of(whole(volume, (16, 16, 16))[None])[0].detach()
    torch.testing.assert_close(
        predict_targets(of, volume.half().float(), size=(16, 16, 16)), expected, atol=1e-2, rtol=0
    )
    torch.testing.assert_close(predict_targets(of, volume, size=(16, 16, 16)), expected)
    assert of.training
    assert not of.features.training
