"""Files as they are meant to be: what is read is what was written."""

import gc
import logging
from dataclasses import replace

import h5py
import numpy as np
import psutil
import pytest
import torch

from support.kspace_files import COILS, COLUMNS, ROWS, SLICES, centre_and_every_fourth, images, kspace
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.synthesis import target_of, zero_filled
from voxelwave.data.kspace.writing import plain_header, write_challenge, write_fastmri
from voxelwave.errors import InputError

SIZE = (ROWS, COLUMNS)


def test_a_multi_coil_file_of_fastmri(tmp_path):
    values, path = kspace(), tmp_path / "file1000001.h5"
    header = replace(plain_header(values), recon_size=(20, 18, 1))
    write_fastmri(path, values, header, acquisition="AXT2")
    file = KspaceFile(path)
    assert (file.info.layout, len(file), file.info.num_coils, file.info.size) == ("fastmri", SLICES, COILS, SIZE)
    assert (file.info.acquisition, file.info.target, file.info.target_size) == ("AXT2", "reconstruction_rss", (20, 18))
    assert file.info.sampled is None
    for index in range(SLICES):
        assert torch.equal(file.slice(index)[0], values[index])
        # The target is NumPy's root of the sum of squares of the cropped images.
        shifted = np.fft.ifftshift(values[index].numpy(), axes=(1, 2))
        image = np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(1, 2))
        expected = np.sqrt((np.abs(image) ** 2).sum(0))[6:26, 3:21]
        np.testing.assert_allclose(file.target(index).numpy(), expected, rtol=1e-5)
    assert file.info.data_range == pytest.approx(float(target_of(values, (20, 18)).max()))


def test_a_single_coil_file_has_one_coil(tmp_path):
    values = kspace(coils=1)
    write_fastmri(tmp_path / "one.h5", values, plain_header(values), single_coil=True)
    file = KspaceFile(tmp_path / "one.h5")
    assert (file.info.layout, file.info.num_coils) == ("fastmri_singlecoil", 1)
    assert file.info.target == "reconstruction_esc"
    assert torch.equal(file.slice(2), values[2:3])


def test_a_test_file_has_a_mask_and_padding_and_no_target(tmp_path):
    values, sampled = kspace(), centre_and_every_fourth()
    header = replace(plain_header(values), first_line=0, last_line=19, center_line=10)
    write_fastmri(tmp_path / "test.h5", values, header, sampled)
    file = KspaceFile(tmp_path / "test.h5")
    assert not file.info.has_target
    assert file.target(0) is None
    assert torch.equal(torch.tensor(file.info.sampled), sampled)
    # fastMRI: padding_left = encoded // 2 - center, padding_right = padding_left + maximum + 1.
    assert file.info.measured_columns == (2, 22)
    assert torch.equal(file.slice(1)[0], values[1] * sampled)


def test_the_layout_of_the_challenge_keeps_images_beside_the_kspace(tmp_path):
    values, sampled, folder = kspace(), centre_and_every_fourth(), tmp_path / "Data" / "train" / "brain"
    write_challenge(folder, "brain_acc4_7.h5", values, sampled, size=(20, 20))
    file = KspaceFile(folder / "kspace" / "brain_acc4_7.h5")
    assert (file.info.layout, file.info.target, file.info.target_size) == ("challenge", "image_label", (20, 20))
    assert torch.equal(torch.tensor(file.info.sampled), sampled)
    torch.testing.assert_close(file.target(3), target_of(values, (20, 20))[3])
    torch.testing.assert_close(file.image("image_input", 3), zero_filled(values, sampled, (20, 20))[3])
    assert file.info.data_range == pytest.approx(float(target_of(values, (20, 20)).max()))
    # Elsewhere they have to be named, and without them there is no target.
    moved = tmp_path / "moved.h5"
    (folder / "kspace" / "brain_acc4_7.h5").rename(moved)
    assert not KspaceFile(moved).info.has_target
    assert KspaceFile(moved, folder / "image" / "brain_acc4_7.h5").info.has_target


def test_neighbours_are_clamped_at_the_ends_of_the_volume(tmp_path):
    values = kspace()
    write_fastmri(tmp_path / "a.h5", values, plain_header(values))
    file = KspaceFile(tmp_path / "a.h5")
    for index, expected in ((0, [0, 0, 0, 1, 2]), (1, [0, 0, 1, 2, 3]), (3, [1, 2, 3, 3, 3])):
        assert torch.equal(file.slice(index, neighbours=2), values[expected])
    for index in (-1, SLICES):
        with pytest.raises(IndexError, match=f"has slices 0 to 3, got {index}"):
            file.slice(index)


def test_other_types_become_complex64(tmp_path):
    values = kspace()
    with h5py.File(tmp_path / "double.h5", "w") as file:
        file.create_dataset("kspace", data=values.to(torch.complex128).numpy(), compression="gzip", shuffle=True)
        file["mask"] = centre_and_every_fourth().numpy()[None, None, :, None].astype(np.int16)
    file = KspaceFile(tmp_path / "double.h5")
    assert torch.equal(file.slice(1)[0], values[1])
    assert sum(file.info.sampled) == int(centre_and_every_fourth().sum())


def test_sensitivity_maps_of_a_file_are_read(tmp_path):
    values = kspace()
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["kspace"], file["sensitivity_maps"] = values.numpy(), 2j * values.numpy()
    file = KspaceFile(tmp_path / "maps.h5")
    assert torch.equal(file.maps(2), 2j * values[2])


def test_a_centre_that_is_off_by_one_is_said_once_and_nothing_is_shifted(tmp_path, caplog):
    values = kspace().roll(-1, dims=-1)
    write_fastmri(tmp_path / "off.h5", values, plain_header(values))
    file = KspaceFile(tmp_path / "off.h5")
    with caplog.at_level(logging.WARNING, logger="voxelwave"):
        found = [file.slice(index) for index in (0, 2, 2, 1)]
    (record,) = caplog.records
    assert f"off.h5: its k-space is strongest at (16, {COLUMNS // 2 - 1})" in record.getMessage()
    assert torch.equal(found[1][0], values[2])
    caplog.clear()
    write_fastmri(tmp_path / "right.h5", kspace(), plain_header(values))
    KspaceFile(tmp_path / "right.h5").slice(2)
    assert not caplog.records


def test_a_file_without_the_largest_value_is_read_and_has_none(tmp_path):
    values = kspace()
    write_fastmri(tmp_path / "a.h5", values, plain_header(values))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file.attrs["max"]
    file = KspaceFile(tmp_path / "a.h5")
    assert file.info.data_range is None
    assert file.info.has_target


def test_memory_and_open_files_stay_flat_over_many_reads(tmp_path):
    values = kspace(rows=128, columns=96)
    paths = [tmp_path / f"{number}.h5" for number in range(12)]
    for path in paths:
        write_fastmri(path, values, plain_header(values))
    files = [KspaceFile(path) for path in paths]
    process = psutil.Process()

    def read_all():
        for file in files * 5:
            for index in range(SLICES):
                file.slice(index, neighbours=1)
        gc.collect()

    read_all()
    before, handles = process.memory_info().rss, process.num_fds()
    for _ in range(4):
        read_all()
    assert process.num_fds() == handles
    # All that was read is 80 times the volume of 1.2 MB.
    assert process.memory_info().rss - before < 8e6


def test_what_a_file_does_not_hold_is_said(tmp_path):
    values = kspace()
    write_fastmri(tmp_path / "a.h5", values, plain_header(values))
    file = KspaceFile(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"a\.h5: holds no noise scan"):
        file.noise()
    with pytest.raises(InputError, match=r"a\.h5: has no 'sensitivity_maps'"):
        file.maps(0)


def test_the_images_of_the_tests_are_heads():
    assert images().shape == (SLICES, ROWS, COLUMNS)
    assert images().min() >= 0
