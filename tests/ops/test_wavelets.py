import numpy as np
import pywt
import torch

from voxelwave.ops.patches import nested_order
from voxelwave.ops.wavelets import haar, inverse_haar


def test_haar_is_orthonormal():
    matrix = haar(torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64))


def test_inverse_haar_inverts():
    octets = torch.randn(3, 5, 8, 4, dtype=torch.float64)
    torch.testing.assert_close(inverse_haar(haar(octets)), octets)


def test_bands_equal_those_of_pywavelets():
    volume = np.random.default_rng(0).normal(size=(4, 6, 8))
    octets = torch.from_numpy(volume).flatten()[nested_order((4, 6, 8), 1)].view(-1, 8, 1)
    bands = haar(octets)[..., 0].view(2, 3, 4, 8)
    expected = pywt.dwtn(volume, "haar")
    for band in range(8):
        name = "".join("d" if band >> bit & 1 else "a" for bit in (2, 1, 0))
        np.testing.assert_allclose(bands[..., band].numpy(), expected[name], atol=1e-12)
