import numpy as np
import pytest
import torch

from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import complex_noise, expand, root_sum_of_squares
from voxelwave.physics.coil_compression import (
    compress,
    compress_geometrically,
    compression_matrix,
    geometric_matrices,
    kept_energy,
)
from voxelwave.physics.coil_maps import birdcage_maps
from voxelwave.physics.fourier import fft2c, ifft2c
from voxelwave.physics.phantoms2d import draw_phantoms


@pytest.fixture(scope="module")
def kspace():
    """A head as twelve coils see it, 64 × 64, in double precision."""
    image = draw_phantoms([torch_generator(1)], size=64)[0].to(torch.complex128)
    maps = birdcage_maps(12, (64, 64), dtype=torch.complex128)
    return fft2c(expand(image, maps)) + complex_noise((12, 64, 64), torch_generator(2), sigma=1e-3).to(maps)


@pytest.mark.parametrize("num_virtual", [1, 4, 12])
def test_virtual_coils_keep_the_energy_that_the_svd_says(kspace, num_virtual):
    singular = np.linalg.svd(kspace.reshape(12, -1).numpy(), compute_uv=False)
    matrix = compression_matrix(kspace, num_virtual=num_virtual)
    virtual = compress(kspace, matrix)
    assert virtual.shape == (num_virtual, 64, 64)
    np.testing.assert_allclose(matrix @ matrix.mH, np.eye(num_virtual), atol=1e-12)
    found = virtual.abs().square().sum((1, 2)).numpy()
    np.testing.assert_allclose(found, singular[:num_virtual] ** 2, rtol=1e-6, atol=1e-9 * singular[0] ** 2)
    expected = (singular[:num_virtual] ** 2).sum() / (singular**2).sum()
    assert float(kept_energy(kspace)[num_virtual - 1]) == pytest.approx(expected)


def test_all_virtual_coils_give_the_same_root_sum_of_squares(kspace):
    virtual = compress(kspace, compression_matrix(kspace[:, :, 28:36], num_virtual=12))
    torch.testing.assert_close(root_sum_of_squares(ifft2c(virtual)), root_sum_of_squares(ifft2c(kspace)))


def test_one_matrix_serves_all_slices(kspace):
    slices = torch.stack([kspace, 1j * kspace])
    matrix = compression_matrix(slices, num_virtual=3)
    torch.testing.assert_close(compress(slices, matrix)[1], 1j * compress(kspace, matrix))


@pytest.mark.parametrize("num_virtual", [2, 3])
def test_matrices_that_follow_the_readout_keep_more_than_one_for_all(kspace, num_virtual):
    whole = compress(kspace, compression_matrix(kspace, num_virtual=num_virtual))
    matrices = geometric_matrices(kspace, num_virtual=num_virtual, window=1)
    virtual = compress_geometrically(kspace, matrices)
    assert virtual.abs().square().sum() > whole.abs().square().sum()
    # With a window of one place they keep what NumPy's SVD of every place says.
    hybrid = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(kspace.numpy(), 1), axis=1, norm="ortho"), 1)
    best = sum((np.linalg.svd(hybrid[:, y], compute_uv=False)[:num_virtual] ** 2).sum() for y in range(64))
    assert float(virtual.abs().square().sum()) == pytest.approx(best)


def test_aligned_matrices_are_orthonormal_and_as_near_to_their_neighbours_as_a_turn_brings_them(kspace):
    matrices = geometric_matrices(kspace[:, :, 20:44], num_virtual=3)
    torch.testing.assert_close(matrices @ matrices.mH, torch.eye(3, dtype=matrices.dtype).expand(64, 3, 3))
    steps = (matrices[1:] - matrices[:-1]).flatten(1).norm(dim=1)
    generator = torch_generator(3)
    for place in (33, 40, 50):
        # The paper's measure: no other unitary turn of this place lies nearer to the one before.
        for _ in range(50):
            turn, _ = torch.linalg.qr(torch.eye(3) + 0.1 * complex_noise((3, 3), generator, sigma=1.0).to(matrices))
            phases = turn.diagonal() / turn.diagonal().abs()
            turned = (turn / phases) @ matrices[place]
            assert (turned - matrices[place - 1]).norm() >= steps[place - 1] - 1e-9


def test_the_aligned_virtual_coils_of_a_smooth_field_are_smooth():
    # Without noise the field changes little from place to place, and so do aligned matrices.
    image = draw_phantoms([torch_generator(1)], size=64)[0].to(torch.complex128) + 0.1
    kspace = fft2c(expand(image, birdcage_maps(12, (64, 64), dtype=torch.complex128)))
    matrices = geometric_matrices(kspace, num_virtual=3)
    steps = (matrices[1:] - matrices[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < 0.2
    same = compress_geometrically(kspace, geometric_matrices(kspace, num_virtual=12))
    torch.testing.assert_close(root_sum_of_squares(ifft2c(same)), root_sum_of_squares(ifft2c(kspace)))


def test_settings_out_of_range_are_refused(kspace):
    for num_virtual in (0, 13):
        with pytest.raises(ValueError, match=f"between 1 and the number of coils, 12, got {num_virtual}"):
            compression_matrix(kspace, num_virtual=num_virtual)
    with pytest.raises(ValueError, match="window must be odd and at least 1, got 4"):
        geometric_matrices(kspace, num_virtual=2, window=4)
