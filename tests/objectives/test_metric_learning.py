import math

import pytest
import torch
from torch import nn

from voxelwave.backbones.embedding2d import MRIEmbeddingModel
from voxelwave.losses.ntxent import NTXentLoss
from voxelwave.losses.triplet import TripletLoss
from voxelwave.objectives.metric_learning import MetricLearning
from voxelwave.ops.seeding import torch_generator
from voxelwave.registry import METRIC_LOSSES

NUMBERS = torch.tensor([[0, 1, 2, 3], [2, 7, 8, 9]])
EVERY_LOSS = [("ntxent", {}), *(("triplet", {"mining": mining}) for mining in ("none", "semihard", "hard"))]


def images(batch_size=4):
    """Two noisy views of an image and another image."""
    first, noise, other = torch.randn((3, batch_size, 4, 16, 16), generator=torch_generator(0))
    return first, first + 0.5 * noise, other


def objective(loss, **settings):
    torch.manual_seed(0)
    return MetricLearning(MRIEmbeddingModel(4, embed_dim=8, widths=(8, 16), **settings), loss)


def test_the_logs_are_those_of_plain_loops_over_the_embeddings_of_each_image():
    views = images()
    module = objective(TripletLoss(margin=0.3))
    vectors = [[module.model.embed(image[None])[0].tolist() for image in images] for images in views]
    pairs = [(math.dist(one, two), math.dist(one, other)) for one, two, other in zip(*vectors, strict=True)]
    loss, logs = module(torch.cat(views), NUMBERS, 0)
    expected = {
        "loss": sum(max(pos - neg + 0.3, 0) for pos, neg in pairs) / 4,
        "d_pos": sum(pos for pos, _ in pairs) / 4,
        "d_neg": sum(neg for _, neg in pairs) / 4,
        "violations": sum(pos + 0.3 > neg for pos, neg in pairs) / 4,
        "margin": 0.3,
    }
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(expected, abs=1e-5)
    assert float(loss.detach()) == float(logs["loss"])
    assert not any(value.requires_grad for value in logs.values())


def test_the_margin_of_training_is_that_of_the_step_and_of_evaluation_the_last():
    module = objective(TripletLoss(margin=0.4, margin_schedule="linear", schedule_steps=10))
    logs = [module(torch.cat(images()), NUMBERS, step).logs for step in (0, 5, 20)]
    assert [float(each["margin"]) for each in logs] == pytest.approx([0.0, 0.2, 0.4])
    assert float(logs[0]["violations"]) < float(logs[2]["violations"])
    module.eval()
    assert float(module(torch.cat(images()), NUMBERS, 0).logs["margin"]) == pytest.approx(0.4)
    assert torch.equal(
        module(torch.cat(images()), NUMBERS, 0).loss,
        objective(TripletLoss(margin=0.4))(torch.cat(images()), NUMBERS, 0).loss,
    )


@pytest.mark.parametrize(("name", "settings"), EVERY_LOSS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_some_steps_bring_the_views_together_and_part_them_from_others(name, settings, batch_size):
    module = objective(METRIC_LOSSES.build(name, **settings))
    numbers = NUMBERS[:, :batch_size]
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    outputs = []
    for step in range(30):
        outputs.append(module(torch.cat(images(batch_size)), numbers, step))
        optimizer.zero_grad()
        outputs[-1].loss.backward()
        optimizer.step()
    first, last = outputs[0].logs, outputs[-1].logs
    assert first["violations"] > 0
    assert last["violations"] == 0
    assert last["d_neg"] - last["d_pos"] > first["d_neg"] - first["d_pos"]
    assert ("mined" in last) == (settings.get("mining", "none") != "none")


@pytest.mark.parametrize("loss", [TripletLoss(), NTXentLoss()])
def test_lengths_of_embeddings_mean_nothing(loss):
    unit, raw = objective(loss), objective(loss, normalize=False)
    torch.testing.assert_close(unit(torch.cat(images()), NUMBERS, 0).logs, raw(torch.cat(images()), NUMBERS, 0).logs)


class Rounded(nn.Module):
    """Gives the first pixels of an image in half precision, as a layer under autocast would."""

    def forward(self, images):
        return images.flatten(1)[:, :8].bfloat16()


@pytest.mark.parametrize("loss", [TripletLoss(), NTXentLoss()])
def test_under_autocast_nothing_after_the_model_is_computed_in_half_precision(loss):
    module = MetricLearning(Rounded(), loss)
    expected = module(torch.cat(images()), NUMBERS, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(torch.cat(images()), NUMBERS, 0)
    assert found.loss.dtype == torch.float32
    assert torch.equal(found.loss, expected.loss)


@pytest.mark.parametrize(("name", "settings"), EVERY_LOSS)
def test_a_nan_in_an_image_makes_the_loss_no_number(name, settings):
    views = images()
    views[1][2, 0, 0, 0] = torch.nan
    output = objective(METRIC_LOSSES.build(name, **settings))(torch.cat(views), NUMBERS, 0)
    assert output.loss.isnan()
    assert float(output.logs["violations"]) >= 0.25
