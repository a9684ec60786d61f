import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from voxelwave.losses.structural_similarity import StructuralSimilarityLoss, structural_similarity
from voxelwave.ops.seeding import torch_generator


def images(unit, *, shape=(24, 30), dtype=torch.float32):
    """A target with a bright, nearly flat part and a dark one, and a noisy version of it."""
    generator = torch_generator("images")
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    target[:, : shape[1] // 2] = 0.98 + 0.001 * target[:, : shape[1] // 2]
    noisy = target + 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return (unit * noisy).to(dtype), (unit * target).to(dtype)


def by_loops(x, y, data_range):
    """The formula, window by window."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for top in range(x.shape[0] - 6):
        for left in range(x.shape[1] - 6):
            a, b = (image[top : top + 7, left : left + 7].ravel() for image in (x, y))
            covariance = np.cov(a, b)
            found.append(
                (2 * a.mean() * b.mean() + c1)
                * (2 * covariance[0, 1] + c2)
                / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2))
            )
    return np.mean(found)


@pytest.mark.parametrize("unit", [1.0, 1e-4, 3e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_mean_of_the_formula_over_whole_windows(unit, dtype):
    predicted, target = images(unit, dtype=dtype)
    found = structural_similarity(predicted[None], target[None], data_range=torch.tensor([1.3 * unit]))
    wanted = by_loops(predicted.double().numpy(), target.double().numpy(), 1.3 * unit)
    assert found.item() == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("unit", [1.0, 1e-4])
def test_it_is_that_of_scikit_image(unit):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed: pip install scikit-image")
    predicted, target = images(unit, shape=(90, 74))
    (found,) = structural_similarity(predicted[None], target[None], data_range=target.amax()[None])
    wanted = metrics.structural_similarity(
        target.double().numpy(), predicted.double().numpy(), win_size=7, data_range=target.max().item()
    )
    assert found.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("unit", [1.0, 1e-4])
def test_it_is_what_scikit_image_computes_with_the_filter_of_scipy(unit):
    predicted, target = (image.double().numpy() for image in images(unit, shape=(90, 74)))
    data_range = target.max()

    def mean(values):
        return uniform_filter(values, 7)

    mx, my = mean(predicted), mean(target)
    vx, vy = (49 / 48 * (mean(v * v) - m * m) for v, m in ((predicted, mx), (target, my)))
    vxy = 49 / 48 * (mean(predicted * target) - mx * my)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    found = structural_similarity(
        *map(torch.from_numpy, (predicted[None], target[None])), data_range=torch.tensor([data_range])
    )
    assert found.item() == pytest.approx(similarity[3:-3, 3:-3].mean(), abs=1e-9)


def test_each_sample_has_its_own_data_range():
    predicted, target = (torch.stack([image, image]) for image in images(1.0))
    found = structural_similarity(predicted, target, data_range=torch.tensor([1.0, 5.0]))
    alone = [structural_similarity(predicted[:1], target[:1], data_range=torch.tensor([r])) for r in (1.0, 5.0)]
    torch.testing.assert_close(found, torch.cat(alone))
    assert found[0] < found[1]


def test_the_loss_of_equal_images_is_0_and_pixels_outside_do_not_count():
    predicted, target = (image[None] for image in images(1e-4))
    inside = torch.zeros_like(target, dtype=torch.bool)
    inside[:, 5:15, 4:20] = True
    loss, data_range = StructuralSimilarityLoss(), torch.tensor([1e-4])
    assert loss(target, target, data_range).item() == pytest.approx(0, abs=1e-7)
    assert loss(torch.where(inside, target, predicted), target, data_range, inside).item() == pytest.approx(0, abs=1e-7)
    masked = structural_similarity(predicted * inside, target * inside, data_range=data_range)
    assert loss(predicted, target, data_range, inside).item() == pytest.approx(1 - masked.item(), abs=1e-6)


def test_its_gradient_is_that_of_the_formula():
    predicted, target = (image[None, :9, :8].contiguous() for image in images(1.0, dtype=torch.float64))
    loss, data_range = StructuralSimilarityLoss(), torch.tensor([1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda image: loss(image, target, data_range), predicted.requires_grad_())


def test_loss_and_gradient_have_the_precision_of_the_prediction():
    predicted, target = (image[None] for image in images(1.0))
    loss = StructuralSimilarityLoss()(predicted.requires_grad_(), target, torch.tensor([1.0]))
    loss.backward()
    assert (loss.dtype, predicted.grad.dtype) == (torch.float32, torch.float32)


def test_images_smaller_than_a_window_and_an_empty_data_range_are_refused():
    with pytest.raises(ValueError, match=r"7 × 7 pixels, got images of \(6, 9\)"):
        structural_similarity(torch.ones(1, 6, 9), torch.ones(1, 6, 9), data_range=torch.ones(1))
    with pytest.raises(ValueError, match=r"above 0, got \[0.0\]"):
        structural_similarity(torch.ones(1, 9, 9), torch.ones(1, 9, 9), data_range=torch.zeros(1))
