import numpy as np
import pytest
import torch

from support.undersampled import undersampled
from voxelwave.ops.seeding import torch_generator
from voxelwave.unrolled.sense import Sense, conjugate_gradients, solve_sense
from voxelwave.unrolled.zero_filled import zero_filled

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def values(*shape, key=0):
    return torch.randn(shape, dtype=torch.complex128, generator=torch_generator(key))


def test_conjugate_gradients_solve_each_sample_as_numpy_does():
    matrices = values(3, 6, 6)
    matrices = matrices @ matrices.mH + 0.1 * torch.eye(6)
    right = values(3, 6, key="right")
    right[1] = 0
    found = conjugate_gradients(lambda x: (matrices @ x[..., None])[..., 0], right, iterations=50, tolerance=1e-12)
    np.testing.assert_allclose(found, np.linalg.solve(matrices.numpy(), right.numpy()[..., None])[..., 0], atol=1e-8)
    assert (found[1] == 0).all()


def test_they_stop_when_the_worst_sample_is_within_the_tolerance():
    matrix = torch.diag(torch.linspace(1, 50, 40)).to(torch.complex128)
    right, calls = values(2, 40), []

    def normal(x):
        calls.append(1)
        return x @ matrix

    found = conjugate_gradients(normal, right, iterations=1000, tolerance=1e-3)
    stopped = len(calls)
    residual = (right - found @ matrix).norm(dim=1) / right.norm(dim=1)
    assert residual.max() <= 1e-3 * (1 + 1e-6)
    assert stopped < 40
    earlier = conjugate_gradients(normal, right, iterations=stopped - 1, tolerance=0)
    assert ((right - earlier @ matrix).norm(dim=1) / right.norm(dim=1)).max() > 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("as_places", [False, True])
def test_samples_that_determine_the_image_give_it_back(as_places, device):
    kspace, sampled, maps, image = undersampled(coils=8, shape=(40, 36), spacing=3)
    chosen = sampled[:, None].expand(-1, 40, -1) if as_places else sampled
    found = solve_sense(
        kspace[:, 1].to(device),
        maps.expand(2, -1, -1, -1).to(device),
        chosen.to(device),
        regularisation=0,
        iterations=200,
        tolerance=1e-6,
    ).cpu()
    assert found.dtype == torch.complex64
    assert (found - image[:, 1]).norm() < 1e-3 * image[:, 1].norm()


@pytest.mark.parametrize("regularisation", [0.0, 0.05])
def test_it_is_the_solution_of_sigpy(regularisation):
    app = pytest.importorskip("sigpy.mri.app", reason="sigpy is not installed: pip install 'voxelwave[classical]'")
    kspace, sampled, maps, _ = undersampled(batch=1, coils=6, shape=(40, 36))
    noise = 0.01 * torch.randn(1, 6, 40, 36, dtype=torch.complex64, generator=torch_generator(0))
    measured = (kspace[:, 1] + noise).nan_to_num()
    found = solve_sense(measured, maps[None], sampled, regularisation=regularisation, iterations=100, tolerance=1e-7)[
        0
    ].numpy()
    wanted = app.SenseRecon(
        measured[0].numpy(),
        maps.numpy(),
        lamda=regularisation,
        weights=sampled[0].expand(40, -1).numpy().astype(np.float32),
        max_iter=100,
        show_pbar=False,
    ).run()
    assert np.linalg.norm(found - wanted) < 1e-3 * np.linalg.norm(wanted)


def test_estimated_maps_bring_the_image_nearer_than_zero_filling_does():
    kspace, sampled, _, image = undersampled(coils=8, shape=(64, 60), spacing=3, center=16)
    error = [
        float((found - image[:, 1].abs()).norm() / image[:, 1].norm())
        for found in (Sense()(kspace, sampled), zero_filled(kspace, sampled))
    ]
    assert error[0] < 0.6 * error[1]


@pytest.mark.parametrize("settings", [{"regularisation": -1.0}, {"tolerance": -1.0}, {"iterations": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="at least"):
        Sense(**settings)
