import subprocess
import sys

import pytest
import torch

from support.undersampled import undersampled
from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fourier import fft2c
from voxelwave.unrolled.classical import EspiritMaps, Grappa, L1Wavelet
from voxelwave.unrolled.zero_filled import zero_filled

NEEDED = {EspiritMaps: "sigpy", L1Wavelet: "sigpy", Grappa: "pygrappa"}


def made(kind, **settings):
    pytest.importorskip(NEEDED[kind], reason=f"{NEEDED[kind]} is not installed: pip install 'voxelwave[classical]'")
    return kind(**settings)


def error(found, image):
    return float((found - image[:, 1].abs()).norm() / image[:, 1].norm())


@pytest.mark.parametrize("kind", NEEDED)
def test_a_library_that_is_missing_is_named_in_one_line(kind, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in NEEDED.values()]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, NEEDED[kind], None)
    with pytest.raises(InputError, match=rf"needs {NEEDED[kind]}: pip install 'voxelwave\[classical\]'$"):
        kind()


def test_nothing_of_the_libraries_is_imported_with_the_module():
    code = "import sys, voxelwave.unrolled.classical; print({'sigpy', 'pygrappa'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"set()\n"


def test_espirit_finds_the_maps_up_to_one_phase_of_all_coils():
    kspace, sampled, maps, image = undersampled(coils=6, shape=(40, 36), center=12)
    found = made(EspiritMaps)(kspace[:, 1], sampled)
    overlap = (found * maps.conj()).sum(1).abs()
    assert found.dtype == torch.complex64
    assert overlap[image[:, 1].abs() > 0.5].min() > 0.99


def test_espirits_kernel_fits_into_the_centre_and_a_centre_that_is_too_narrow_is_refused():
    kspace, sampled, maps, image = undersampled(coils=6, shape=(40, 36), center=8)
    found = made(EspiritMaps)(kspace[:, 1], sampled)
    assert found.equal(made(EspiritMaps, kernel_width=4)(kspace[:, 1], sampled))
    assert (found * maps.conj()).sum(1).abs()[image[:, 1].abs() > 0.5].min() > 0.9
    kspace, sampled, *_ = undersampled(coils=6, shape=(40, 36), center=4)
    with pytest.raises(ValueError, match="ESPIRiT needs a centre of 6 lines or more, got 4: reconstruct by SENSE"):
        made(EspiritMaps)(kspace[:, 1], sampled)


@pytest.mark.parametrize("kind", [L1Wavelet, Grappa])
def test_the_image_comes_nearer_than_by_zero_filling(kind):
    kspace, sampled, _, image = undersampled(coils=8, shape=(64, 60), spacing=3, center=16)
    noise = 0.002 * torch.randn(kspace.shape, dtype=torch.complex64, generator=torch_generator("noise"))
    measured = 1e-4 * (kspace + noise)
    found = 1e4 * made(kind)(measured, sampled)
    assert error(found, image) < 0.6 * error(1e4 * zero_filled(measured, sampled), image)


def test_grappa_leaves_a_whole_kspace_as_it_is():
    image = undersampled().image
    maps = undersampled().maps
    kspace = fft2c(image.unsqueeze(2) * maps)
    found = made(Grappa)(kspace, torch.ones(2, 20, dtype=torch.bool))
    torch.testing.assert_close(found, image[:, 1].abs(), rtol=1e-4, atol=1e-5)


def test_grappa_refuses_a_centre_that_is_narrower_than_its_kernel():
    kspace, sampled, *_ = undersampled()
    sampled[:, 13:18] = False
    with pytest.raises(ValueError, match="lines that are 6 apart need a GRAPPA kernel of 11 lines"):
        made(Grappa)(kspace, sampled)


@pytest.mark.parametrize("settings", [{"regularisation": -1.0}, {"iterations": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="at least"):
        made(L1Wavelet, **settings)
