import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from voxelwave.data.kspace.complex_transforms import (
    Augmentation,
    CoilCompression,
    ComplexPipeline,
    EquispacedUndersample,
    Normalize,
    ToCompatibleTensor,
    Undersample,
    rotate_and_shift,
)
from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.registry import SAMPLINGS

SHAPES = [(3, 2, 16, 12, 2), (2, 1, 15, 13, 2), (1, 4, 9, 16, 2)]


def pairs(shape=SHAPES[0], dtype=torch.float64):
    return torch.randn(shape, generator=torch_generator(0), dtype=dtype)


def generators(count=3):
    return [torch_generator(1, index) for index in range(count)]


def random_lines():
    return Undersample(SAMPLINGS.build("random_lines", acceleration=3.0, center_fraction=0.1))


def every_other_place(shape, generator):
    return torch.rand(shape, generator=generator) < 0.5


def whole_pipeline():
    return ComplexPipeline(random_lines(), Augmentation(), Normalize(clip=3.0), ToCompatibleTensor())


TRANSFORMS = {
    "equispaced": EquispacedUndersample,
    "random lines": random_lines,
    "random places": lambda: Undersample(every_other_place),
    "augmentation": lambda: Augmentation(max_degrees=30, max_shift=3),
    "coil compression": lambda: CoilCompression(num_virtual=2),
    "normalize": Normalize,
    "tensor": ToCompatibleTensor,
    "pipeline": whole_pipeline,
}
every_transform = pytest.mark.parametrize("name", list(TRANSFORMS))


def numpy_undersampled(image, sampled):
    axes = (-2, -1)
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes), norm="ortho"), axes)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace * sampled, axes), norm="ortho"), axes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["equispaced", "random lines", "random places"])
def test_undersampling_is_what_numpy_leaves_of_the_centred_k_space(name, shape):
    given, transform = pairs(shape), TRANSFORMS[name]()
    found = torch.view_as_complex(transform(given, generators(len(given)))).numpy()
    for sample, generator, result in zip(
        torch.view_as_complex(given).numpy(), generators(len(given)), found, strict=True
    ):
        sampled = transform.sampling(shape[2:4], generator).numpy()
        assert np.allclose(result, numpy_undersampled(sample, sampled), atol=1e-12)


def test_equispaced_lines_and_the_centre_are_kept():
    image = pairs((1, 2, 32, 64, 2))
    result = EquispacedUndersample(acceleration=4, center_fraction=0.125)(image)
    kspace = np.fft.fftshift(np.fft.fft2(torch.view_as_complex(result).numpy()), (-2, -1))
    kept = np.abs(kspace).max((0, 1, 2)) > 1e-9
    assert kept.tolist() == [line % 4 == 0 or 28 <= line < 36 for line in range(64)]


def test_without_acceleration_nothing_is_lost():
    assert torch.allclose(EquispacedUndersample(acceleration=1)(pairs()), pairs(), atol=1e-12)


@every_transform
def test_a_sample_of_a_batch_becomes_what_it_becomes_alone(name):
    transform, given = TRANSFORMS[name](), pairs()
    together = transform(given, generators())
    alone = torch.stack([transform(item, generator) for item, generator in zip(given, generators(), strict=True)])
    assert together.shape == alone.shape
    assert torch.allclose(together, alone, atol=1e-12)
    assert torch.equal(given, pairs())


@every_transform
def test_single_precision_stays_single_and_the_layout_does_not_matter(name):
    transform, given = TRANSFORMS[name](), pairs(dtype=torch.float32)
    expected = transform(given, generators())
    assert expected.dtype == torch.float32
    scattered = given.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.allclose(transform(scattered, generators()), expected, atol=1e-5)


@every_transform
def test_samples_of_equal_data_change_in_their_own_way_where_something_is_drawn(name):
    same = pairs()[:1].expand(3, -1, -1, -1, -1)
    first, second, third = TRANSFORMS[name]()(same, generators())
    drawn = name not in ("equispaced", "coil compression", "normalize", "tensor")
    assert torch.equal(first, second) is not drawn
    assert torch.equal(second, third) is not drawn


@pytest.mark.parametrize("shape", [(2, 5, 9, 8, 2), (1, 3, 6, 5, 2)])
def test_virtual_coils_are_what_numpy_projects_on_the_leading_singular_vectors(shape):
    given = pairs(shape)
    found = torch.view_as_complex(CoilCompression(num_virtual=2)(given)).flatten(2).numpy()
    for sample, virtual in zip(torch.view_as_complex(given).flatten(2).numpy(), found, strict=True):
        left, values, _ = np.linalg.svd(sample, full_matrices=False)
        vectors = left[:, :2]
        # Singular vectors have no phase of their own: their largest coefficients are made real and positive.
        largest = vectors[np.abs(vectors).argmax(0), [0, 1]]
        expected = (vectors * np.conj(largest / np.abs(largest))).conj().T @ sample
        np.testing.assert_allclose(np.abs(virtual), np.abs(expected), atol=1e-10)
        np.testing.assert_allclose(virtual, expected, atol=1e-10)
        np.testing.assert_allclose((np.abs(virtual) ** 2).sum(1), values[:2] ** 2)


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_normalisation_follows_the_formula(shape, clip):
    given = 5 * pairs(shape)
    found = Normalize(eps=0.1, clip=clip)(given).numpy()
    for sample, result in zip(given.numpy(), found, strict=True):
        magnitude = np.abs(sample[..., 0] + 1j * sample[..., 1])
        expected = (sample - magnitude.mean()) / (magnitude.std() + 0.1)
        assert np.allclose(result, expected if clip is None else expected.clip(-clip, clip), atol=1e-12)


def test_an_empty_image_is_normalised_to_zeros_with_a_gradient():
    nothing = torch.zeros(1, 2, 4, 4, 2, requires_grad=True)
    result = Normalize()(nothing)
    result.sum().backward()
    assert float(result.detach().abs().max()) < 1e-6
    assert bool(nothing.grad.isfinite().all())


@pytest.mark.parametrize("shape", SHAPES)
def test_scipy_turns_and_shifts_each_part_alike(shape):
    given = pairs(shape)
    degrees = torch.tensor([17.0, -8.0, 30.0], dtype=torch.float64)[: len(given)]
    shifts = torch.tensor([[1.3, -0.6], [0.0, 2.0], [-1.5, 0.25]], dtype=torch.float64)[: len(given)]
    found = rotate_and_shift(given, degrees, shifts)
    centre = (np.array(shape[2:4]) - 1) / 2
    for sample, angle, shift, result in zip(given, degrees, shifts, found, strict=True):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        # From an output place to the input place, in (rows, columns): rows point down.
        matrix = np.array([[cosine, sine], [-sine, cosine]])
        offset = centre - matrix @ (centre + shift.numpy())
        for coil, coil_result in zip(sample, result, strict=True):
            for part in range(2):
                expected = affine_transform(
                    coil[..., part].numpy(), matrix, offset, order=1, mode="grid-constant", cval=0
                )
                assert np.allclose(coil_result[..., part].numpy(), expected, atol=1e-10)


def test_a_quarter_turn_is_counter_clockwise_and_a_shift_goes_down_and_right():
    corner = torch.zeros(1, 1, 5, 5, 2)
    corner[0, 0, 0, 4] = 1
    turned = rotate_and_shift(corner, torch.tensor([90.0]), torch.zeros(1, 2))
    assert torch.allclose(turned[0, 0, 0, 0], torch.ones(2), atol=1e-5)
    moved = rotate_and_shift(corner, torch.zeros(1), torch.tensor([[2.0, -1.0]]))
    assert torch.allclose(moved[0, 0, 2, 3], torch.ones(2), atol=1e-5)


def test_the_augmentation_is_differentiable():
    given = pairs((2, 1, 4, 3, 2)).requires_grad_()
    degrees = torch.tensor([7.0, -4.0], dtype=torch.float64, requires_grad=True)
    shifts = torch.tensor([[0.3, -0.6], [1.2, 0.45]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotate_and_shift, (given, degrees, shifts), fast_mode=True)


def test_a_gradient_passes_the_whole_pipeline():
    pipeline, given = whole_pipeline(), pairs((2, 2, 6, 5, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pipeline(x, generators(2)), (given,), fast_mode=True)


def test_angles_and_shifts_fill_their_ranges():
    degrees, shifts = Augmentation(max_degrees=10, max_shift=2).draw(generators(300))
    for drawn, limit in ((degrees, 10), (shifts[:, 0], 2), (shifts[:, 1], 2)):
        assert -limit <= float(drawn.min()) < -0.95 * limit
        assert 0.95 * limit < float(drawn.max()) <= limit
    still = Augmentation(max_degrees=0, max_shift=0)
    assert torch.allclose(still(pairs(), generators()), pairs(), atol=1e-6)


def test_channels_alternate_between_real_and_imaginary_part():
    item = pairs()[0]
    channels = ToCompatibleTensor()(item)
    assert channels.shape == (4, 16, 12)
    assert channels.is_contiguous()
    for coil in range(2):
        for part in range(2):
            assert torch.equal(channels[2 * coil + part], item[coil, ..., part])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["equispaced", "random lines", "random places", "normalize", "pipeline"])
def test_what_is_not_finite_is_named_with_its_sample(name, value):
    given = pairs()
    given[1, 0, 3, 5, 1] = value
    with pytest.raises(ValueError, match=r"samples \[1\] of the batch hold NaN or infinite"):
        TRANSFORMS[name]()(given, generators())


def test_the_augmentation_moves_a_hole_and_does_not_spread_it():
    given = pairs()
    given[1, 0, 8, 6, 1] = math.nan
    moved = Augmentation()(given, generators())
    holes = moved.isnan().nonzero()
    assert 1 <= len(holes) <= 6
    assert holes[:, [0, 1, 4]].unique(dim=0).tolist() == [[1, 0, 1]]


@every_transform
@pytest.mark.parametrize("shape", [(4, 4, 2), (2, 4, 4, 3), (1, 1, 2, 4, 4, 2), (0, 2, 4, 4, 2), (2, 0, 4, 2)])
def test_another_shape_is_refused_and_named(name, shape):
    with pytest.raises(ValueError, match=rf"\[coil, height, width, 2\].*{', '.join(map(str, shape))}"):
        TRANSFORMS[name]()(torch.zeros(shape), generators())


@pytest.mark.parametrize("given", [None, "one", "too few"])
@pytest.mark.parametrize("name", ["random lines", "augmentation"])
def test_what_draws_wants_a_generator_a_sample(name, given):
    wrong = {"one": torch_generator(0), "too few": generators(2), None: None}[given]
    with pytest.raises(ValueError, match=r"draws numbers: give a generator a sample, got . for 3"):
        TRANSFORMS[name]()(pairs(), wrong)


@pytest.mark.parametrize("name", ["equispaced", "normalize", "tensor"])
def test_what_draws_nothing_wants_no_generator(name):
    transform = TRANSFORMS[name]()
    assert torch.equal(transform(pairs()), transform(pairs(), generators()))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: EquispacedUndersample(acceleration=0),
        lambda: EquispacedUndersample(acceleration=-2),
        lambda: EquispacedUndersample(center_fraction=0),
        lambda: EquispacedUndersample(center_fraction=1.1),
        lambda: EquispacedUndersample(acceleration=13)(pairs()),
        lambda: Augmentation(max_degrees=181),
        lambda: Augmentation(max_shift=-1),
        lambda: Augmentation(max_shift=math.nan),
        lambda: CoilCompression(num_virtual=0),
        lambda: CoilCompression(num_virtual=3)(pairs()),
        lambda: Normalize(eps=-1e-3),
        lambda: Normalize(clip=0),
    ],
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=r"got -?[\dn]") as caught:
        wrong()
    assert not isinstance(caught.value, InputError)
