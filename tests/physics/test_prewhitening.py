import numpy as np
import pytest
import torch

from voxelwave.physics.prewhitening import noise_covariance, whiten


def correlated(coils, samples, seed=0):
    """Noise of a known covariance, as NumPy draws and mixes it."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(coils, coils)) + 1j * random.normal(size=(coils, coils))
    white = (random.normal(size=(coils, samples)) + 1j * random.normal(size=(coils, samples))) / np.sqrt(2)
    return mixing @ white, mixing @ mixing.conj().T


def test_the_covariance_is_that_of_numpy():
    noise, true = correlated(6, 60000)
    found = noise_covariance(torch.from_numpy(noise)).numpy()
    # np.cov is E[n conj(m)] with the mean taken off, over one sample less.
    np.testing.assert_allclose(found, np.cov(noise, bias=True), atol=0.05)
    np.testing.assert_allclose(found, true, atol=0.03 * np.abs(true).max())


def test_whitened_noise_has_the_identity_as_its_covariance():
    noise, _ = correlated(8, 4000)
    covariance = noise_covariance(torch.from_numpy(noise))
    kspace = torch.from_numpy(noise).reshape(8, 40, 100)
    white = whiten(kspace, covariance).reshape(8, -1).numpy()
    np.testing.assert_allclose(white @ white.conj().T / 4000, np.eye(8), atol=1e-12)
    # As NumPy's inverse of its Cholesky factor, in single precision with leading axes.
    expected = np.linalg.inv(np.linalg.cholesky(covariance.numpy())) @ noise
    found = whiten(torch.stack([kspace, 2 * kspace]).to(torch.complex64), covariance)
    np.testing.assert_allclose(found[1].reshape(8, -1).numpy(), 2 * expected, atol=1e-4)
    assert found.dtype == torch.complex64


def test_noise_of_a_wider_band_is_scaled_to_that_of_the_image():
    noise, _ = correlated(3, 5000)
    covariance = noise_covariance(torch.from_numpy(noise))
    # Samples of the image take half as long: twice the band, twice the variance.
    image = torch.from_numpy(np.sqrt(2) * noise).reshape(3, 50, 100)
    white = whiten(image, covariance, dwell_time_ratio=2.0).reshape(3, -1).numpy()
    np.testing.assert_allclose(white @ white.conj().T / 5000, np.eye(3), atol=1e-12)


def test_a_coil_that_measured_nothing_or_repeats_another_is_refused():
    noise = torch.from_numpy(correlated(3, 100)[0])
    for broken in (torch.zeros_like(noise[0]), noise[0]):
        covariance = noise_covariance(torch.stack([noise[0], noise[1], broken]))
        with pytest.raises(ValueError, match="the noise covariance is singular"):
            whiten(torch.ones(3, 2, 2, dtype=torch.complex64), covariance)
    with pytest.raises(ValueError, match="the covariance is of 3 coils, and the k-space has 4"):
        whiten(torch.ones(4, 2, 2, dtype=torch.complex64), noise_covariance(noise))
    with pytest.raises(ValueError, match="3 coils needs at least as many samples, got 2"):
        noise_covariance(noise[:, :2])
