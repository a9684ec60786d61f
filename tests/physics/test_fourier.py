import numpy as np
import pytest
import torch

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fourier import as_complex, as_pairs, fft2c, ifft2c

SHAPES = [(8, 6), (7, 9), (5, 4), (1, 3), (1, 1), (2, 3, 6, 5)]


def values(shape, dtype=torch.complex128):
    return torch.randn(shape, dtype=dtype, generator=torch_generator(0))


def centred(transform, array):
    axes = (-2, -1)
    return np.fft.fftshift(transform(np.fft.ifftshift(array, axes), axes=axes, norm="ortho"), axes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("ours", "numpys"), [(fft2c, np.fft.fft2), (ifft2c, np.fft.ifft2)])
def test_numpy_transforms_alike(shape, ours, numpys):
    image = values(shape)
    np.testing.assert_allclose(ours(image).numpy(), centred(numpys, image.numpy()), atol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 9), (5, 4)])
def test_a_wave_is_one_point_of_k_space_counted_from_its_centre(height, width):
    ky, kx = 2, -1
    y, x = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    angle = 2 * torch.pi * (ky * y[:, None] / height + kx * x / width)
    expected = torch.zeros(height, width, dtype=torch.complex128)
    expected[height // 2 + ky, width // 2 + kx] = (height * width) ** 0.5
    wave = torch.polar(torch.ones_like(angle, dtype=torch.float64), angle.double())
    assert torch.allclose(fft2c(wave), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_transform_undoes_the_other_and_both_keep_the_energy(shape):
    image = values(shape)
    for there, back in ((fft2c, ifft2c), (ifft2c, fft2c)):
        assert torch.allclose(back(there(image)), image, atol=1e-12)
        assert there(image).abs().square().sum().isclose(image.abs().square().sum())


@pytest.mark.parametrize("transform", [fft2c, ifft2c])
@pytest.mark.parametrize(("dtype", "real"), [(torch.complex64, torch.float32), (torch.complex128, torch.float64)])
def test_pairs_are_transformed_as_complex_values_are_and_answered_as_pairs(transform, dtype, real):
    image = values((2, 5, 4), dtype)
    pairs = torch.stack([image.real, image.imag], -1)
    answer = transform(pairs)
    assert answer.dtype == real
    assert torch.equal(answer[..., 0], transform(image).real)
    assert torch.equal(answer[..., 1], transform(image).imag)
    # Parts that do not lie side by side, as in [2, height, width], read the same.
    apart = pairs.movedim(-1, 0).contiguous().movedim(0, -1)
    assert torch.equal(transform(apart), answer)


def test_pairs_and_complex_values_turn_into_each_other():
    image = values((3, 5))
    assert torch.equal(as_complex(as_pairs(image)), image)
    assert torch.equal(as_pairs(image.conj())[..., 1], -image.imag)
    assert as_complex(image) is image
    half = torch.tensor([[1.5, -2.0]], dtype=torch.float16)
    assert torch.equal(as_complex(half), torch.tensor([1.5 - 2j], dtype=torch.complex64))


@pytest.mark.parametrize("function", [as_complex, fft2c, ifft2c])
def test_real_values_that_are_no_pairs_are_refused(function):
    with pytest.raises(ValueError, match=r"\[\.\.\., 2\].*\(4, 6, 3\).*give a complex tensor"):
        function(torch.zeros(4, 6, 3))


def test_gradients_pass():
    pairs = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch_generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(fft2c, (pairs,))
    assert torch.autograd.gradcheck(ifft2c, (pairs,))
