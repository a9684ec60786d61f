"""ISMRMRD files, against what was put in, and against the package `ismrmrd` where it is installed."""

import resource
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
import torch

from support.kspace_files import COILS, COLUMNS, ROWS, SLICES, centre_and_every_fourth, images, kspace
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.images.geometry import ImageSize, place_slices
from voxelwave.data.kspace.mrd.records import ACQUISITION, CALIBRATION, CALIBRATION_AND_IMAGING, HEAD, NOISE
from voxelwave.data.kspace.synthesis import coil_noise, synthesize_kspace
from voxelwave.data.kspace.writing import header_text, plain_header, write_mrd
from voxelwave.errors import InputError
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.acquisition import root_sum_of_squares
from voxelwave.physics.fourier import ifft2c
from voxelwave.physics.prewhitening import noise_covariance, whiten


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.h5"


def changed(path, change):
    """Let `change` edit the table of acquisitions of a file."""
    with h5py.File(path, "r+") as file:
        table = file["dataset/data"][:]
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=change(table), dtype=ACQUISITION)


def refused(path, expected):
    with pytest.raises(InputError, match=expected) as caught:
        KspaceFile(path).slice(0)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_lines_come_back_in_their_places_whatever_their_order(path):
    values = kspace()
    write_mrd(path, values, plain_header(values, protocol="T2 axial"))
    changed(path, lambda table: table[np.random.default_rng(0).permutation(len(table))])
    file = KspaceFile(path)
    assert (file.info.layout, len(file), file.info.num_coils) == ("mrd", SLICES, COILS)
    assert (file.info.size, file.info.acquisition, file.info.notes) == ((ROWS, COLUMNS), "T2 axial", ())
    assert torch.equal(torch.cat([file.slice(index) for index in range(SLICES)]), values)
    assert torch.equal(file.slice(0, neighbours=1), values[[0, 0, 1]])
    assert file.target(0) is None
    assert file.info.dwell_time_ratio is None


def test_read_out_oversampling_is_removed_and_the_image_stays(path):
    values = kspace(noise=0.0, oversampling=2)
    write_mrd(path, values, plain_header(values, oversampling=2))
    file = KspaceFile(path)
    assert (values.shape[2], file.info.size) == (2 * ROWS, (ROWS, COLUMNS))
    found = root_sum_of_squares(ifft2c(file.slice(1)[0]))
    torch.testing.assert_close(found, images()[1], atol=2e-6, rtol=1e-5)


def test_noise_scans_are_told_apart_and_whiten_the_image(path):
    values = kspace(noise=0.02, correlation=0.6)
    noise = coil_noise(COILS, 4096, torch_generator(7), sigma=0.02 * float(images().max()), correlation=0.6)
    write_mrd(path, values, plain_header(values), noise=noise)
    file = KspaceFile(path)
    assert torch.equal(file.slice(3)[0], values[3])
    assert torch.equal(file.noise(), noise)
    assert file.info.dwell_time_ratio == 1.0
    white = whiten(noise.unflatten(1, (64, 64)), noise_covariance(file.noise())).flatten(1)
    torch.testing.assert_close(white @ white.mH / 4096, torch.eye(COILS) + 0j, atol=1e-5, rtol=0)

    def slower(table):
        table["head"]["sample_time_us"][0] = 30.0
        return table

    changed(path, slower)
    assert KspaceFile(path).info.dwell_time_ratio == pytest.approx(3.0)


def test_a_file_of_noise_scans_only_is_refused(path):
    values = kspace()
    write_mrd(path, values, plain_header(values), noise=coil_noise(COILS, 64, torch_generator(0), sigma=1.0))
    changed(path, lambda table: table[:1])
    refused(path, "holds noise scans only, 1 acquisitions: record the image, too")


def test_partial_fourier_is_filled_with_zeros_and_marked(path):
    values = kspace()
    header = replace(plain_header(values), last_line=COLUMNS - 7, center_line=COLUMNS // 2 - 6)
    sampled = torch.arange(COLUMNS) >= 6
    write_mrd(path, values, header, sampled)
    file = KspaceFile(path)
    assert file.info.measured_columns == (6, COLUMNS)
    assert torch.equal(torch.tensor(file.info.sampled), sampled)
    assert file.info.notes == (f"partial Fourier: columns 6 to 23 of {COLUMNS} were measured, the others are 0",)
    assert torch.equal(file.slice(2)[0], values[2] * sampled)


def test_a_partial_echo_is_put_where_its_centre_says(path):
    values = kspace()
    header = plain_header(values)
    write_mrd(path, values, header)

    def cut(table):
        table["head"]["number_of_samples"], table["head"]["center_sample"] = ROWS - 8, ROWS // 2 - 8
        for row in table:
            row["data"] = np.ascontiguousarray(row["data"].reshape(COILS, ROWS, 2)[:, 8:]).ravel()
        return table

    changed(path, cut)
    file = KspaceFile(path)
    expected = values[1].clone()
    expected[:, :8] = 0
    assert torch.equal(file.slice(1)[0], expected)
    assert file.info.notes == (f"partial echo: {ROWS - 8} of {ROWS} samples of a line, the others are 0",)


def test_samples_that_are_to_be_discarded_are_0(path):
    values = kspace()
    write_mrd(path, values, plain_header(values))

    def discard(table):
        table["head"]["discard_pre"], table["head"]["discard_post"] = 3, 2
        return table

    changed(path, discard)
    expected = values[0].clone()
    expected[:, :3] = 0
    expected[:, -2:] = 0
    assert torch.equal(KspaceFile(path).slice(0)[0], expected)


def test_averages_are_averaged(path):
    values = kspace()
    write_mrd(path, values, plain_header(values))

    def twice(table):
        again = table.copy()
        again["head"]["idx"]["average"] = 1
        for row in again:
            row["data"] = 3 * row["data"]
        return np.concatenate([table, again])

    changed(path, twice)
    torch.testing.assert_close(KspaceFile(path).slice(2)[0], 2 * values[2])


def test_lines_for_calibration_alone_count_where_they_are_embedded(path):
    values, sampled = kspace(), centre_and_every_fourth()
    for mode, flag, kept in (
        ("embedded", CALIBRATION, True),
        ("separate", CALIBRATION_AND_IMAGING, True),
    ):
        write_mrd(path, values, replace(plain_header(values), calibration=mode), sampled)

        def flag_centre(table, flag=flag):
            centre = abs(table["head"]["idx"]["kspace_encode_step_1"].astype(int) - COLUMNS // 2) < 3
            table["head"]["flags"][centre] |= 1 << (flag - 1)
            return table

        changed(path, flag_centre)
        assert KspaceFile(path).info.sampled[COLUMNS // 2] == kept
    write_mrd(path, values, replace(plain_header(values), calibration="separate"), sampled)
    changed(path, partial(flag_centre, flag=CALIBRATION))
    refused(path, "no calibration centre: columns 11 and 12 are not both sampled")


def test_slices_lie_where_their_lines_say(path):
    values = kspace()
    write_mrd(path, values, plain_header(values))
    info = KspaceFile(path).info
    assert [place.position_mm for place in info.places] == [(0, 0, 5.0 * number) for number in range(SLICES)]
    assert (info.places[0].readout, info.places[0].phase, info.places[0].normal) == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert (info.field_of_view_mm, info.image_size) == ((ROWS, COLUMNS, 5.0), (ROWS, COLUMNS))

    def nowhere(table):
        table["head"]["read_dir"] = 0
        return table

    changed(path, nowhere)
    assert KspaceFile(path).info.places == ()
    assert KspaceFile(path).info.notes == ("its lines do not say where they lie",)


@pytest.mark.parametrize(
    ("recon", "recon_mm", "shown", "spacing"),
    [
        ((2 * ROWS, 2 * COLUMNS), (240, 180), (ROWS, COLUMNS), (7.5, 7.5)),  # interpolated to twice the matrix
        ((ROWS, ROWS), (240, 240), (ROWS, COLUMNS), (7.5, 10.0)),  # a lower resolution along the phase encoding
        ((ROWS, 20), (240, 150), (ROWS, 20), (7.5, 7.5)),  # oversampled along the phase encoding
    ],
)
def test_pixels_have_the_size_that_was_measured_whatever_matrix_a_scanner_interpolates_to(
    path, recon, recon_mm, shown, spacing
):
    values = kspace(oversampling=2)
    header = replace(
        plain_header(values, oversampling=2),
        recon_size=(*recon, 1),
        encoded_fov_mm=(480.0, COLUMNS * spacing[1], 5.0),
        recon_fov_mm=(*recon_mm, 5.0),
    )
    write_mrd(path, values, header)
    of_array = path.with_name("array.h5")
    with h5py.File(of_array, "w") as file:
        file["kspace"], file["ismrmrd_header"] = values.numpy(), header_text(header)
    for info in (KspaceFile(path).info, KspaceFile(of_array).info):
        assert info.image_size == shown
        placed = place_slices(info, ImageSize(SLICES, *info.image_size))
        np.testing.assert_allclose(placed.spacing_mm, spacing)
        assert info.field_of_view_mm[2] == 5.0


def test_interleaved_slices_are_taken_as_they_lie(path):
    values = kspace()
    write_mrd(path, values, plain_header(values))
    order = np.array([0, 2, 1, 3])  # which slice has the next number

    def interleaved(table):
        counted = table["head"]["idx"]["slice"]
        table["head"]["position"][:, 2] = 5.0 * order[counted]
        return table

    changed(path, interleaved)
    file = KspaceFile(path)
    assert [place.position_mm[2] for place in file.info.places] == [0, 5, 10, 15]
    assert torch.equal(file.slice(1, neighbours=1), values[[0, 2, 1]])
    assert "counted in another order than they lie in" in file.info.notes[0]

    def downwards(table):
        table["head"]["position"][:, 2] = -5.0 * table["head"]["idx"]["slice"]
        return table

    # That is an order as good.
    changed(path, downwards)
    assert torch.equal(KspaceFile(path).slice(1, neighbours=1), values[:3])


def edit(name, value, rows=slice(0, 3)):
    """Return a change of one field of the heads, of counters where it is one of them."""

    def change(table):
        part = table["head"] if name in HEAD.names else table["head"]["idx"]
        part[name][rows] = value
        return table

    return change


def without_the_end(table):
    table[5]["data"] = table[5]["data"][:-2]
    return table


def with_another_trajectory(table):
    table[2]["traj"] = np.zeros(7, dtype=np.float32)
    return table


def with_another_coil(table):
    table[0]["head"]["active_channels"] = COILS + 1
    return table


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit("contrast", 1), "holds 2 values of 'contrast', one two-dimensional volume is needed"),
        (edit("kspace_encode_step_2", 4), "holds 2 values of 'kspace_encode_step_2'"),
        (edit("number_of_samples", 16), "has lines of differing size: number_of_samples is 16, 32"),
        (with_another_coil, "has differing coil counts: active_channels is 3, 4"),
        (edit("active_channels", 60000, slice(None)), "claims lines of 32 samples and 60000 coils"),
        (edit("number_of_samples", 64, slice(None)), "claims lines of 64 samples"),
        (edit("center_sample", 3, slice(None)), "its lines, 32 samples around sample 3, do not fit into the 32"),
        (edit("kspace_encode_step_1", 24), "do not fit into the 24 that were encoded"),
        (edit("flags", 1 << 21), "has lines that were measured backwards"),
        (edit("flags", 1 << 22, slice(None)), "holds no lines of an image"),
        (without_the_end, "acquisition 5 holds 95 values, not 3 coils × 32 samples"),
        (with_another_trajectory, "acquisition 2 holds .* or another trajectory than its head says"),
        (edit("slice", np.arange(SLICES * COLUMNS), slice(None)), "its slices have no line in common"),
    ],
)
def test_acquisitions_that_are_no_volume_are_refused(path, change, expected):
    values = kspace()
    write_mrd(path, values, plain_header(values))
    changed(path, change)
    refused(path, expected)


def test_a_header_that_claims_far_more_than_was_measured_is_refused(path):
    values = kspace()
    header = replace(plain_header(values), encoded_size=(4096, 4096, 1), center_line=2048)
    write_mrd(path, values, header)
    refused(path, r"its header claims \(4096, 4096\), of which next to nothing was measured")


@pytest.mark.parametrize("chunks", [None, (1,), (64,), (96,)])
def test_a_length_that_is_not_in_the_file_is_refused_before_there_is_room_for_it(path, chunks):
    values = kspace()
    write_mrd(path, values, plain_header(values))
    with h5py.File(path, "r+") as file:
        table = file["dataset/data"][:]
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=table, chunks=chunks)
    assert torch.equal(KspaceFile(path).slice(1)[0], values[1])
    # The length of each entry of one line stands before the place of its values, which the file begins a heap with.
    damaged, length = bytearray(path.read_bytes()), np.uint32(2 * COILS * ROWS).tobytes()
    place = next(
        place
        for place in range(len(damaged) - 16)
        if damaged[place : place + 4] == length
        and damaged[(at := int.from_bytes(damaged[place + 4 : place + 12], "little")) : at + 4] == b"GCOL"
    )
    damaged[place : place + 4] = np.uint32(2**32 - 8).tobytes()
    path.write_bytes(damaged)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "acquisition 0 holds 2147483644 values, not 3 coils × 32 samples")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # kB


def test_compressed_acquisitions_are_refused(path):
    values = kspace()
    write_mrd(path, values, plain_header(values))
    with h5py.File(path, "r+") as file:
        table = file["dataset/data"][:]
        del file["dataset/data"]
        file["dataset"].create_dataset("data", data=table, compression="gzip")
    refused(path, "'/dataset/data' is compressed, which is not read of entries of any length: decompress it")


def test_other_trajectories_and_other_records_are_refused(path):
    values = kspace()
    write_mrd(path, values, replace(plain_header(values), trajectory="radial"))
    refused(path, "its trajectory is 'radial', a Cartesian one is needed")
    for dtype, expected in (
        (np.dtype([("head", HEAD), ("data", "<f4")]), "not laid out as ISMRMRD does"),
        (
            np.dtype(
                [("head", [("flags", "<u8")]), *((name, h5py.vlen_dtype(np.float32)) for name in ("traj", "data"))]
            ),
            "lack 'version'",
        ),
    ):
        with h5py.File(path, "r+") as file:
            del file["dataset/data"]
            file["dataset"].create_dataset("data", (3,), dtype=dtype)
        refused(path, expected)


def test_files_and_headers_are_those_of_the_package_ismrmrd(path, tmp_path):
    ismrmrd = pytest.importorskip("ismrmrd")
    values, noise = kspace(oversampling=2), coil_noise(COILS, 64, torch_generator(1), sigma=0.1)
    write_mrd(path, values, plain_header(values, oversampling=2), noise=noise)
    # 1. It reads what is written here.
    written = ismrmrd.Dataset(str(path), create_if_needed=False)
    header = ismrmrd.xsd.CreateFromDocument(written.read_xml_header())
    assert header.encoding[0].encodedSpace.matrixSize.x == 2 * ROWS
    assert ismrmrd.ACQ_IS_NOISE_MEASUREMENT == NOISE
    first, line = written.read_acquisition(0), written.read_acquisition(1 + 5)
    assert first.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    np.testing.assert_array_equal(first.data, noise.numpy())
    np.testing.assert_array_equal(line.data, values[0, :, :, 5].numpy())
    assert (line.idx.kspace_encode_step_1, line.center_sample) == (5, ROWS)
    # 2. What it writes is read here.
    copied = ismrmrd.Dataset(str(tmp_path / "copy.h5"), "dataset", create_if_needed=True)
    copied.write_xml_header(header.toXML("utf-8") if hasattr(header, "toXML") else written.read_xml_header())
    for number in range(written.number_of_acquisitions()):
        copied.append_acquisition(written.read_acquisition(number))
    written.close()
    copied.close()
    ours, theirs = KspaceFile(path), KspaceFile(tmp_path / "copy.h5")
    assert ours.info == theirs.info
    assert torch.equal(ours.slice(1), theirs.slice(1))
    assert torch.equal(theirs.noise(), noise)


def test_synthesis_is_a_function_of_its_seed_and_refuses_what_cannot_be():
    assert torch.equal(kspace(seed=3), kspace(seed=3))
    assert not torch.equal(kspace(seed=3), kspace(seed=4))
    with pytest.raises(ValueError, match="oversampling must be at least 1, got 0"):
        synthesize_kspace(images(), oversampling=0)
    with pytest.raises(ValueError, match="correlation lies between 0 and 1, got 1"):
        coil_noise(2, 3, torch_generator(0), sigma=1.0, correlation=1.0)
