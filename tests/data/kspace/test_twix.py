"""Twix files against what was put in; the package twixtools wrote them."""

import numpy as np
import pytest
import torch

from support.kspace_files import COILS, COLUMNS, ROWS, SLICES, centre_and_every_fourth, kspace
from support.twix_files import image_lines, line, write_twix
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.errors import InputError
from voxelwave.jobs.common.kspace_files import find_kspace
from voxelwave.jobs.reconstruct.scoring.pairs import result_places
from voxelwave.physics.fourier import crop_readout

pytest.importorskip("twixtools", reason="twixtools is not installed: pip install 'voxelwave[twix]'")


@pytest.fixture(autouse=True)
def without_words(capsys):
    """It prints what it adds to a file."""
    yield
    capsys.readouterr()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "meas.dat"


def write(path, lines, **settings):
    return write_twix(path, lines, base=ROWS, width=COLUMNS, **settings)


def refused(path, expected):
    with pytest.raises(InputError, match=expected) as caught:
        KspaceFile(path).slice(0)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_lines_come_back_in_their_places_whatever_their_order(path):
    values = kspace()
    lines = image_lines(values.numpy())
    write(path, [lines[index] for index in np.random.default_rng(0).permutation(len(lines))])
    file = KspaceFile(path)
    assert (file.info.layout, len(file), file.info.num_coils) == ("twix", SLICES, COILS)
    assert (file.info.size, file.info.acquisition, file.info.notes) == ((ROWS, COLUMNS), "t2_tse_tra", ())
    assert torch.equal(torch.cat([file.slice(index) for index in range(SLICES)]), values)
    assert torch.equal(file.slice(0, neighbours=1), values[[0, 0, 1]])
    assert file.target(0) is None
    assert file.info.sampled == (True,) * COLUMNS


def test_read_out_oversampling_is_removed_and_undersampling_is_seen(path):
    values, sampled = kspace(noise=0.0, oversampling=2), centre_and_every_fourth()
    write(path, image_lines(values.numpy(), sampled=sampled.numpy()))
    file = KspaceFile(path)
    assert file.info.size == (ROWS, COLUMNS)
    assert file.info.sampled == tuple(sampled.tolist())
    torch.testing.assert_close(file.slice(1)[0], crop_readout(values[1] * sampled, ROWS), rtol=1e-4, atol=1e-5)


def test_the_noise_scan_is_told_apart(path):
    values, noise = kspace(), np.random.default_rng(0).normal(size=(COILS, 64)).astype(np.complex64)
    write(path, image_lines(values.numpy()), noise=noise)
    file = KspaceFile(path)
    assert torch.equal(file.slice(0), values[:1])
    assert torch.equal(file.noise(), torch.from_numpy(noise))
    assert file.info.dwell_time_ratio == 2


def test_averages_are_averaged_and_a_partial_echo_is_filled(path):
    values = kspace()
    lines = image_lines(values[:, :, 6:].numpy() * 0.5, centre=ROWS // 2 - 6)
    lines += image_lines(values[:, :, 6:].numpy() * 1.5, centre=ROWS // 2 - 6, Ave=1)
    write(path, lines)
    file = KspaceFile(path)
    expected = values[:1].clone()
    expected[:, :, :6] = 0
    torch.testing.assert_close(file.slice(0), expected)
    assert "partial echo" in file.info.notes[0]


def test_position_and_directions_are_those_of_the_lines(path):
    write(path, image_lines(kspace().numpy()))
    info = KspaceFile(path).info
    assert [place.position_mm for place in info.places] == [(3.0, 0.0, 10.0 * index) for index in range(SLICES)]
    # A turn by nothing: as twixtools has it, phase encoding and read-out lead the other way.
    assert info.places[0].phase == (-1.0, 0.0, 0.0)
    assert info.places[0].readout == (0.0, -1.0, 0.0)
    assert info.places[0].normal == (0.0, 0.0, 1.0)
    assert (info.image_size, info.field_of_view_mm) == ((ROWS, COLUMNS), (240.0, 180.0, 5.0))


@pytest.mark.parametrize(
    ("more", "settings", "said"),
    [
        ({"Eco": 1}, {}, "2 values of its counter Eco"),
        ({"column": 40}, {}, "do not fit into the 24 of its protocol"),
        ({"flags": ("REFLECT",)}, {}, "measured backwards"),
        ({"coils": 1}, {}, "differing coil counts"),
        ({}, {"dimension": 4}, "three-dimensional"),
    ],
)
def test_what_is_not_one_volume_is_refused(path, more, settings, said):
    values, more = kspace().numpy(), dict(more)
    flags, coils = more.pop("flags", ()), more.pop("coils", COILS)
    write(path, [*image_lines(values), line(values[0, :coils, :, 0], *flags, **more)], **settings)
    refused(path, said)


def test_noise_alone_and_damaged_files_are_one_line(path, tmp_path):
    noise = line(np.ones((COILS, 16), dtype=np.complex64), "NOISEADJSCAN")
    refused(write(path, [noise]), "holds noise scans only")
    whole = write(tmp_path / "whole.dat", image_lines(kspace().numpy())).read_bytes()
    for size in (8, 5000, 11000, len(whole) // 2):
        cut = tmp_path / f"cut{size}.dat"
        cut.write_bytes(whole[:size])
        refused(cut, "cut short")
    blank = tmp_path / "blank.dat"
    blank.write_bytes(whole[:10_300] + bytes(len(whole) - 10_300))
    refused(blank, "unreadable|holds no|claims|cut")


def test_twix_files_are_found_beside_others_and_become_hdf5(tmp_path):
    write(tmp_path / "meas.dat", image_lines(kspace(slices=2).numpy()))
    (tmp_path / "other.dat").write_bytes(b"no such file at all")
    found = find_kspace(str(tmp_path))
    assert found == [tmp_path / "meas.dat"]
    assert [str(place) for place in result_places(found, str(tmp_path))] == ["meas.h5"]
