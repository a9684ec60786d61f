import numpy as np

from support.undersampled import undersampled
from voxelwave.unrolled.zero_filled import zero_filled


def test_it_is_what_numpy_makes_of_the_centre_slice():
    kspace, sampled, *_ = undersampled(shape=(9, 20))
    filled = np.where(sampled.numpy()[:, None, None], kspace[:, 1].numpy(), 0)
    shifted = np.fft.ifftshift(filled, axes=(-2, -1))
    coils = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))
    np.testing.assert_allclose(zero_filled(kspace, sampled), np.sqrt((np.abs(coils) ** 2).sum(1)), atol=1e-5)
