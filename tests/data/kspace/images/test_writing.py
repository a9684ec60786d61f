"""What is written of a volume lies where its k-space says, for every reader."""

import logging
from dataclasses import replace

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from voxelwave.data.kspace.images.geometry import ImageSize, place_slices
from voxelwave.data.kspace.images.reading import read_hdf5
from voxelwave.data.kspace.images.writing import HIGHEST, write_dicom, write_hdf5, write_nifti, write_png
from voxelwave.data.kspace.info import KspaceInfo, SlicePlace
from voxelwave.data.reading.dicom import find_series, read_series
from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.errors import InputError
from voxelwave.ops.seeding import numpy_generator

pydicom = pytest.importorskip("pydicom", reason="writing DICOM is an extra: pip install 'voxelwave[dicom]'")
SLICES, ROWS, COLUMNS = 9, 12, 10
MARKED = (6, 8, 3)
# Read-out, phase and normal of an oblique stack.
TURN = np.linalg.qr(numpy_generator(0).normal(size=(3, 3)))[0].T
SPACING_MM, GAP_MM, THICKNESS_MM = (1.5, 0.8), 4.0, 3.0


def places(turn=TURN, offsets=None, count=SLICES):
    """A stack; its slices are `offsets` mm along the normal from (10, -20, 30)."""
    offsets = GAP_MM * np.arange(count) if offsets is None else offsets
    return tuple(
        SlicePlace(tuple(np.array([10.0, -20.0, 30.0]) + offset * turn[2]), *(tuple(axis.tolist()) for axis in turn))
        for offset in offsets
    )


def info(size=(16, 10), **changes):
    known = KspaceInfo(
        layout="mrd",
        num_slices=SLICES,
        num_coils=2,
        size=size,
        measured_columns=(0, size[1]),
        image_size=(ROWS, COLUMNS),
        field_of_view_mm=(ROWS * SPACING_MM[0], COLUMNS * SPACING_MM[1], THICKNESS_MM),
        places=places(),
    )
    return replace(known, **changes)


def volume(slices=SLICES):
    """Noise, with one voxel that stands out."""
    images = numpy_generator(1).random((slices, ROWS, COLUMNS)).astype(np.float32) * 1e-5
    if slices > MARKED[0]:
        images[MARKED] = 1e-4
    return images


def world_of_mark(of=TURN):
    """Where the marked voxel lies by hand, in LPS: the origin of an image of 16 × 10 is at (8, 5)."""
    number, row, column = MARKED
    # Two rows were cut off above.
    steps = (row + 2 - 8) * SPACING_MM[0] * of[0] + (column - 5) * SPACING_MM[1] * of[1] + number * GAP_MM * of[2]
    return np.array([10.0, -20.0, 30.0]) + steps


def brightest(array, affine):
    index = np.unravel_index(np.argmax(array), array.shape)
    return affine @ np.array([*index, 1.0])


def simpleitk_mark(image, sitk):
    array = sitk.GetArrayFromImage(image)
    index = np.unravel_index(np.argmax(array), array.shape)
    return np.array(image.TransformIndexToPhysicalPoint([int(value) for value in index[::-1]]))


def test_a_marked_voxel_has_one_place_in_nifti_and_dicom_for_the_readers_here_and_for_simpleitk(tmp_path):
    sitk = pytest.importorskip("SimpleITK", reason="the oracle")
    write_nifti(tmp_path / "a.nii.gz", volume(), info())
    files = write_dicom(tmp_path / "series", volume(), info(), name="scan")
    lps, ras = world_of_mark(), world_of_mark() * [-1, -1, 1]
    # 1. Readers of this package.
    nifti = read_volume(tmp_path / "a.nii.gz")
    (series,), unreadable = find_series(files)
    assert (unreadable, series.problem) == ([], None)
    dicom = read_series(series)
    for read in (nifti, dicom):
        np.testing.assert_allclose(brightest(read.array, read.affine)[:3], ras, atol=1e-4)
    np.testing.assert_allclose(nifti.affine, dicom.affine, atol=1e-4)
    np.testing.assert_allclose(nifti.array, dicom.array, atol=1e-4 / HIGHEST)
    assert sorted(nifti.spacing_mm) == pytest.approx(sorted((*SPACING_MM, GAP_MM)), rel=1e-5)
    # 2. SimpleITK, and nibabel.
    np.testing.assert_allclose(simpleitk_mark(sitk.ReadImage(str(tmp_path / "a.nii.gz")), sitk), lps, atol=1e-4)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series")))
    np.testing.assert_allclose(simpleitk_mark(reader.Execute(), sitk), lps, atol=1e-4)
    found = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(brightest(found.get_fdata(), found.affine)[:3], ras, atol=1e-4)
    np.testing.assert_allclose(found.get_qform(), found.get_sform(), atol=1e-4)


@pytest.mark.parametrize(("size", "shown", "origin"), [((16, 11), (12, 10), (6, 5)), ((15, 10), (12, 9), (6, 5))])
def test_the_origin_stays_where_the_transform_has_it_whatever_is_odd(size, shown, origin):
    placed = place_slices(info(size), ImageSize(SLICES, *shown))
    middle = placed.first_mm + origin[0] * placed.row_step_mm + origin[1] * placed.column_step_mm
    np.testing.assert_allclose(middle, [place.position_mm for place in info().places])


def test_slices_that_were_measured_in_turns_lie_in_order_and_dicom_keeps_their_numbers(tmp_path):
    mixed = [0, 5, 1, 6, 2, 7, 3, 8, 4]
    of = info(places=places(offsets=GAP_MM * np.array(mixed)))
    write_nifti(tmp_path / "a.nii", volume(), of)
    found = nibabel.load(tmp_path / "a.nii")
    np.testing.assert_array_equal(found.get_fdata(dtype=np.float32)[:, :, mixed], volume().transpose(1, 2, 0))
    (series,), _ = find_series(write_dicom(tmp_path / "series", volume(), of, name="scan"))
    np.testing.assert_allclose(read_series(series).affine, read_volume(tmp_path / "a.nii").affine, atol=1e-4)


def test_what_no_affine_can_say_is_refused_for_nifti_and_placed_slice_by_slice_in_dicom(tmp_path):
    uneven = info(places=places(offsets=GAP_MM * np.arange(SLICES) ** 1.2))
    turned = info(places=(*places()[:-1], replace(places()[-1], readout=(0.0, 0.0, 1.0))))
    for number, of in enumerate((uneven, turned)):
        with pytest.raises(InputError, match="turned against each other, or unevenly spaced"):
            write_nifti(tmp_path / "a.nii", volume(), of)
        for place, file in zip(of.places, write_dicom(tmp_path / f"{number}", volume(), of, name="a"), strict=True):
            dataset = pydicom.dcmread(file)
            row, column = np.reshape(np.array(dataset.ImageOrientationPatient, float), (2, 3))[::-1]
            spacing = [float(value) for value in dataset.PixelSpacing]
            middle = np.array(dataset.ImagePositionPatient, float) + 6 * spacing[0] * row + 5 * spacing[1] * column
            np.testing.assert_allclose(middle, place.position_mm, atol=1e-4)
    assert not (tmp_path / "a.nii").exists()


def test_a_single_slice_is_as_thick_as_the_header_says(tmp_path):
    of = info(num_slices=1, places=places(count=1))
    write_nifti(tmp_path / "a.nii", volume(1), of)
    assert read_header(tmp_path / "a.nii").spacing_mm == pytest.approx((*SPACING_MM, THICKNESS_MM), rel=1e-5)
    (file,) = write_dicom(tmp_path / "series", volume(1), of, name="scan")
    assert pydicom.dcmread(file).SliceThickness == THICKNESS_MM


def test_without_a_place_nifti_says_unknown_and_dicom_claims_no_side(tmp_path, caplog):
    spaced, bare = info(places=()), info(places=(), image_size=None, field_of_view_mm=None)
    for number, (of, spacing) in enumerate([(spaced, (*SPACING_MM, THICKNESS_MM)), (bare, (1, 1, 1))]):
        with caplog.at_level(logging.WARNING, logger="voxelwave"):
            write_nifti(tmp_path / "a.nii", volume(), of)
            (first, *_) = write_dicom(tmp_path / f"{number}", volume(), of, name="scan")
        header = nibabel.load(tmp_path / "a.nii").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
        assert header.get_zooms() == pytest.approx(spacing, rel=1e-5)
        dataset = pydicom.dcmread(first)
        assert dataset.SOPClassUID.name == "Secondary Capture Image Storage"
        assert not {"ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"} & {*dataset.dir()}
        assert [float(value) for value in dataset.PixelSpacing] == pytest.approx(spacing[:2], rel=1e-6)
        assert "nothing says where its slices lie" in caplog.messages[-1]
        caplog.clear()


def test_uids_follow_from_scan_and_volume_and_nothing_of_the_patient_is_written(tmp_path):
    first, again, other, elsewhere = (
        [pydicom.dcmread(file) for file in write_dicom(tmp_path / folder, images, info(), name=name, description=text)]
        for folder, images, name, text in (
            ("a", volume(), "Doe^Jane", "T2\\axial\n  \u202eJos\xe9"),
            ("b", volume(), "Doe^Jane", "T2\\axial\n  \u202eJos\xe9"),
            ("c", volume() * 2, "Doe^Jane", ""),
            ("d", volume(), "other", ""),
        )
    )
    assert first == again
    assert len({data.SOPInstanceUID for data in (*first, *other, *elsewhere)}) == 3 * SLICES
    assert first[0].StudyInstanceUID == other[0].StudyInstanceUID != elsewhere[0].StudyInstanceUID
    assert len({data[0].SeriesInstanceUID for data in (first, other, elsewhere)}) == 3
    assert len({data.SeriesInstanceUID for data in first}) == 1
    assert (str(first[0].PatientName), first[0].PatientID) == ("ANONYMOUS", "ANONYMOUS")
    assert first[0].SeriesDescription == "T2 axial Jos"
    assert b"Doe" not in b"".join(file.read_bytes() for file in (tmp_path / "a").iterdir())


@pytest.mark.parametrize("values", [volume() * 1e4, volume() - 5e-5, 0 * volume(), 0 * volume() + 7])
def test_sixteen_bits_with_a_slope_are_half_a_step_from_the_values(tmp_path, values):
    (series,), _ = find_series(write_dicom(tmp_path / "a", values, info(), name="scan"))
    write_nifti(tmp_path / "a.nii", values, info())
    step = (max(float(values.max()), 0) - min(float(values.min()), 0)) / HIGHEST
    error = np.abs(read_series(series).array - read_volume(tmp_path / "a.nii").array).max()
    assert error <= 0.51 * step + 1e-6 * float(np.abs(values).max())


def test_a_volume_of_another_scan_is_refused(tmp_path):
    for wrong in (volume(8), np.zeros((SLICES, 17, 8), np.float32)):
        with pytest.raises(ValueError, match=r"is not of a k-space of \(9, 16, 10\)"):
            write_nifti(tmp_path / "a.nii", wrong, info())


def test_hdf5_comes_back_with_its_attributes_and_mask(tmp_path):
    sampled = np.arange(10) % 2 == 0
    given = {"anatomy": "knee", "acceleration": 4.0, "effective_acceleration": 3.2, "method": "sense", "specialist": ""}
    write_hdf5(tmp_path / "a.h5", volume(), given, sampled)
    found = read_hdf5(tmp_path / "a.h5")
    np.testing.assert_array_equal(found.images, volume())
    np.testing.assert_array_equal(found.sampled, sampled)
    assert found[2:] == ("knee", 4.0, "sense", "")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["reconstruction"].dtype == np.float32
        assert dict(file.attrs) == given


def test_images_of_other_programs_need_the_dataset_alone(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["reconstruction"] = volume().astype(np.float64)
    found = read_hdf5(tmp_path / "a.h5")
    assert (found.sampled, found.anatomy, found.method) == (None, "", "")
    assert np.isnan(found.acceleration)


def test_what_is_no_volume_is_one_line_with_the_name_of_the_file(tmp_path):
    broken = volume()
    broken[3, 2, 1] = np.nan
    wrong = {
        "has no 'reconstruction'": {"kspace": volume()},
        "3 axes": {"reconstruction": volume()[0]},
        "real ones": {"reconstruction": volume() * 1j},
        "slice 3 holds NaN or infinite values": {"reconstruction": broken},
    }
    for expected, content in wrong.items():
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name, values in content.items():
                file[name] = values
        with pytest.raises(InputError, match=expected) as caught:
            read_hdf5(tmp_path / "a.h5")
        assert str(caught.value).startswith(f"{tmp_path / 'a.h5'}: ")
    write_hdf5(tmp_path / "a.h5", volume(), {"acceleration": -1.0})
    with pytest.raises(InputError, match=r"'acceleration' is -1\.0"):
        read_hdf5(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"b\.h5: no such file"):
        read_hdf5(tmp_path / "b.h5")


def test_a_sheet_shows_every_slice_on_one_scale(tmp_path):
    images = np.ones((5, 6, 4), np.float32) * np.arange(1, 6, dtype=np.float32)[:, None, None]
    images[0, 0, 0] = np.nan
    write_png(tmp_path / "a.png", images)
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    assert sheet.shape == (12, 12)
    tiles = [sheet[6 * (n // 3) + 3, 4 * (n % 3) + 2] for n in range(6)]
    np.testing.assert_allclose(tiles, [51, 102, 153, 204, 255, 0], atol=1)
    assert sheet[0, 0] == 0
