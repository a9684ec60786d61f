"""Series written here and read against SimpleITK, spheres against the place they were put at, and what is refused."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from voxelwave.data.listing.scans import find_scans
from voxelwave.data.reading.dicom import find_series, is_dicom, read_series, read_series_header, series_uid
from voxelwave.data.reading.dicom_pixels import read_pixels
from voxelwave.data.reading.volume import resample
from voxelwave.errors import InputError, UnusableVolume

pydicom = pytest.importorskip("pydicom", reason="reading DICOM is an extra: pip install 'voxelwave[dicom]'")
imagecodecs = pytest.importorskip("imagecodecs", reason="reading DICOM is an extra: pip install 'voxelwave[dicom]'")

AXIAL = ((1, 0, 0), (0, 1, 0))
CORONAL = ((1, 0, 0), (0, 0, -1))
SAGITTAL = ((0, 1, 0), (0, 0, -1))
OBLIQUE = tuple(map(tuple, np.linalg.qr([[0.9, 0.2, 0.1], [-0.3, 0.8, 0.4], [0.1, -0.5, 0.9]])[0].T[:2]))
SPACING_MM = (0.9, 0.7)  # between rows, between columns
CT_IMAGE, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"
UID = "1.2.826.0.1.3680043.8.498.1"


def stack(orientation=AXIAL, gaps=(2.5,) * 9, first=(-31.0, 12.5, 40.0), tilt=0.0):
    """Positions along the normal, each slice shifted up its columns as a gantry tilted by `tilt` degrees does."""
    row, column = np.array(orientation, float)
    heights = np.concatenate([[0.0], np.cumsum(gaps)])
    return np.array(first) + heights[:, None] * (np.cross(row, column) + np.tan(np.radians(tilt)) * column)


def image(pixels, position, orientation=AXIAL, number=0, *, uid=UID, **tags):
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE, f"{uid}.{number}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = uid, f"{UID}.8", f"{UID}.9"
    dataset.Modality, dataset.PatientID, dataset.PatientName = "CT", "ID-4711", "Doe^Jane"
    dataset.SeriesDescription, dataset.ImageType, dataset.InstanceNumber = (
        "head",
        ["ORIGINAL", "PRIMARY", "AXIAL"],
        number,
    )
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.ImagePositionPatient = [f"{value:.9g}" for value in position]
    dataset.ImageOrientationPatient = [f"{value:.9g}" for value in np.ravel(orientation)]
    dataset.PixelSpacing = list(SPACING_MM)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
        if value is None:
            delattr(dataset, name)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return dataset


def write(folder, pixels, positions, orientation=AXIAL, *, name="{}.dcm", start=0, **tags):
    """Write slices [slice, row, column] named in another order; a tag may be a list, one a slice."""
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(len(pixels)).permutation(len(pixels))
    files = []
    for index, label in enumerate(order):
        own = {key: value[index] if isinstance(value, list) else value for key, value in tags.items()}
        dataset = image(pixels[index], positions[index], orientation, start + index, **own)
        files.append(folder / name.format(start + label))
        dataset.save_as(files[-1], enforce_file_format=True)
    return sorted(files)


def noise(slices=10, rows=12, columns=14):
    return np.random.default_rng(0).integers(-1000, 2000, (slices, rows, columns), dtype=np.int16)


def only(files):
    (series,), unreadable = find_series(files)
    assert unreadable == []
    return series


def in_ras(image):
    """The array and the affine of SimpleITK, its axes turned by nibabel."""
    sitk = pytest.importorskip("SimpleITK", reason="the oracle of orientation")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    values = sitk.GetArrayFromImage(image).T.astype(np.float32)
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1]) @ affine))


def by_simpleitk(folder):
    sitk = pytest.importorskip("SimpleITK", reason="the oracle of orientation")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return in_ras(reader.Execute())


@pytest.mark.parametrize(
    "orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["axial", "coronal", "sagittal", "oblique"]
)
@pytest.mark.parametrize("towards", [1, -1])
def test_values_and_affine_equal_those_of_simpleitk(tmp_path, orientation, towards):
    files = write(tmp_path / "s", noise(), stack(orientation)[::towards], orientation)
    volume, expected = read_series(only(files)), by_simpleitk(tmp_path / "s")
    assert np.array_equal(volume.array, expected.get_fdata())
    assert np.allclose(volume.affine, expected.affine, rtol=0, atol=1e-6)
    assert sorted(volume.spacing_mm) == pytest.approx(sorted((0.9, 0.7, 2.5)), abs=1e-6)


def test_the_header_is_that_of_the_volume_and_opens_no_file(tmp_path):
    series = only(write(tmp_path / "s", noise(), stack(SAGITTAL), SAGITTAL))
    array = read_series(series).array
    for file in series.files:
        file.unlink()
    info = read_series_header(series)
    assert (info.shape, info.dtype, info.orientation) == ((14, 12, 10), "int16", "PIR")
    assert info.spacing_mm == pytest.approx((0.7, 0.9, 2.5))
    assert array.shape == (10, 14, 12)
    assert series.note == ""


def test_files_are_in_the_order_of_position_and_survive_pickling(tmp_path):
    positions = stack()
    series = only(write(tmp_path / "s", noise(), positions))
    heights = [pydicom.dcmread(file).ImagePositionPatient[2] for file in series.files]
    assert heights == pytest.approx(positions[:, 2])
    assert list(series.files) != sorted(series.files)
    assert pickle.loads(pickle.dumps(series)) == series


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    pixels, slopes, intercepts = noise(), [0.5 + index for index in range(10)], list(range(-1024, -1014))
    files = write(tmp_path / "s", pixels, stack(), RescaleSlope=slopes, RescaleIntercept=intercepts)
    expected = pixels * np.reshape(slopes, (-1, 1, 1)) + np.reshape(intercepts, (-1, 1, 1))
    assert np.allclose(read_series(only(files)).array, expected.transpose(2, 1, 0)[::-1, ::-1], rtol=1e-6)


def test_a_slice_whose_values_mean_nothing_is_refused_by_itself(tmp_path):
    found, unreadable = find_series(write(tmp_path / "s", noise(), stack(), RescaleSlope=[1] * 4 + [0] + [1] * 5))
    assert unreadable == []
    assert sorted(len(series.files) for series in found) == [1, 9]
    whole, alone = sorted(found, key=lambda series: series.problem or "")
    assert alone.problem == "its RescaleSlope is 0.0, so what its values mean is unknown"
    assert whole.note == "slices 2.50 to 5.00 mm apart, interpolated to 2.50 mm"


def lossless_jpeg(frame):
    return imagecodecs.jpeg8_encode(frame.view(np.uint16), lossless=True)


def test_compressed_pixels_are_those_that_were_compressed(tmp_path):
    files = write(tmp_path / "s", noise(rows=32, columns=40), stack())
    expected = read_series(only(files)).array
    for syntax, encode in [
        (pydicom.uid.JPEGLosslessSV1, lossless_jpeg),
        (pydicom.uid.JPEGLSLossless, lambda frame: imagecodecs.jpegls_encode(frame.view(np.uint16))),
        (
            pydicom.uid.JPEG2000Lossless,
            lambda frame: imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True),
        ),
        (pydicom.uid.RLELossless, None),
        (pydicom.uid.HTJ2KLossless, lambda frame: imagecodecs.htj2k_encode(frame, reversible=True)),
    ]:
        files = write(tmp_path / syntax, noise(rows=32, columns=40), stack())
        for file in files:
            dataset = pydicom.dcmread(file)
            if encode is None:
                dataset.compress(syntax, encoding_plugin="pydicom", generate_instance_uid=False)
            else:
                dataset.PixelData = pydicom.encaps.encapsulate([encode(dataset.pixel_array)])
                dataset["PixelData"].is_undefined_length = True
                dataset.file_meta.TransferSyntaxUID = syntax
            dataset.save_as(file)
        assert np.array_equal(read_series(only(files)).array, expected), syntax.name
        assert np.array_equal(by_simpleitk(tmp_path / syntax).get_fdata(), expected), syntax.name


def test_negative_values_of_few_bits_survive_compression(tmp_path):
    files = write(tmp_path / "s", noise() // 2, stack())
    expected = read_series(only(files)).array
    for file in files:
        dataset = pydicom.dcmread(file)
        bits = dataset.pixel_array.view(np.uint16) & 0x0FFF
        dataset.PixelData = pydicom.encaps.encapsulate(
            [imagecodecs.jpeg8_encode(bits, lossless=True, bitspersample=12)]
        )
        dataset["PixelData"].is_undefined_length = True
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        dataset.save_as(file)
    assert expected.min() < 0
    assert np.array_equal(read_series(only(files)).array, expected)


def test_compressed_pixels_of_another_size_are_refused(tmp_path):
    files = write(tmp_path / "s", noise(), stack())
    dataset = pydicom.dcmread(files[0])
    dataset.PixelData = pydicom.encaps.encapsulate([lossless_jpeg(dataset.pixel_array[:1])])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    dataset.save_as(files[0])
    with pytest.raises(UnusableVolume, match="its pixels are not 1 times 12 by 14, as its header says"):
        read_series(only(files))


def test_a_file_without_a_header_of_its_own_is_read_where_its_name_says_dicom(tmp_path):
    files = write(tmp_path / "s", noise(), stack())
    expected = read_series(only(files)).array
    for file in files:
        bare = pydicom.Dataset()
        bare.update(pydicom.dcmread(file))
        bare.save_as(file, implicit_vr=True, little_endian=True)
        assert file.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read_series(only(files)).array, expected)


def soft_sphere(positions, orientation, centre_mm, shape=(56, 64), radius_mm=9.0):
    """Slices of a sphere with a soft edge around `centre_mm` (LPS), 1000 inside, from the definition of the tags."""
    rows, columns = np.meshgrid(*map(np.arange, shape), indexing="ij")
    row, column = np.array(orientation, float)
    in_plane = columns[..., None] * SPACING_MM[1] * row + rows[..., None] * SPACING_MM[0] * column
    distance = np.linalg.norm(positions[:, None, None] + in_plane - centre_mm, axis=-1)
    return np.round(1000 / (1 + np.exp(np.clip(distance - radius_mm, -50, 50) / 0.7))).astype(np.int16)


def centre_of(array, affine):
    weights = array.astype(np.float64)
    places = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij"), -1)
    centre = (weights[..., None] * places).sum((0, 1, 2)) / weights.sum()
    return affine[:3, :3] @ centre + affine[:3, 3]


UNEVEN = (1.08,) * 9 + (3.1, 5.0) + (6.99,) * 6 + (2.2,) * 3


@pytest.mark.parametrize(
    ("orientation", "gaps", "tilt"),
    [
        (AXIAL, (2.5,) * 23, 0.0),
        (AXIAL, (2.5,) * 23, 20.0),
        (AXIAL, (5.0,) * 11, -17.0),
        (OBLIQUE, (2.5,) * 23, 12.0),
        (AXIAL, UNEVEN, 0.0),
        (AXIAL, UNEVEN, 15.0),
        (AXIAL, (2.5,) * 10 + (5.0,) + (2.5,) * 11, 0.0),
    ],
    ids=["even", "tilted", "tilted thick", "tilted oblique", "uneven", "tilted uneven", "one missing"],
)
def test_a_sphere_stays_where_it_is_in_mm(tmp_path, orientation, gaps, tilt):
    positions = stack(orientation, gaps, tilt=tilt)
    steps = np.array(orientation) * np.array(SPACING_MM[::-1])[:, None]
    # Among even neighbours: where gaps change, no interpolation of samples keeps a centre of mass to 0.1 mm.
    centre_mm = positions[0] + 0.58 * (positions[-1] - positions[0]) + 30 * steps[0] + 26 * steps[1]
    series = only(write(tmp_path / "s", soft_sphere(positions, orientation, centre_mm), positions, orientation))
    volume = resample(read_series(series), 1.0)
    assert volume.spacing_mm == pytest.approx((1, 1, 1))
    found_mm = centre_of(volume.array, volume.affine)
    assert np.linalg.norm(found_mm - centre_mm * (-1, -1, 1)) < 0.1
    assert ("interpolated" in series.note) == (len(set(gaps)) > 1)
    assert ("tilted" in series.note) == (tilt != 0)


def test_the_geometry_without_the_shear_would_miss_the_sphere_by_millimetres(tmp_path):
    positions = stack(tilt=20.0, gaps=(2.5,) * 23)
    centre_mm = positions[6] + (30 * SPACING_MM[1], 26 * SPACING_MM[0], 0)
    series = only(write(tmp_path / "s", soft_sphere(positions, AXIAL, centre_mm, radius_mm=6.0), positions))
    volume, without_shear = read_series(series), by_simpleitk(tmp_path / "s")
    assert np.linalg.norm(centre_of(volume.array, volume.affine) - centre_mm * (-1, -1, 1)) < 0.05
    missed_mm = centre_of(without_shear.get_fdata(), without_shear.affine) - centre_mm * (-1, -1, 1)
    assert np.linalg.norm(missed_mm) > 5
    assert series.note == "slice axis tilted by 20.0°"


def test_uneven_gaps_become_the_smallest_and_the_note_says_so(tmp_path):
    pixels = noise(len(UNEVEN) + 1)
    series = only(write(tmp_path / "s", pixels, stack(gaps=UNEVEN)))
    assert series.note == "slices 1.08 to 6.99 mm apart, interpolated to 1.09 mm"
    volume, info = read_series(series), read_series_header(series)
    assert volume.array.shape == info.shape == (14, 12, 62)
    heights = np.concatenate([[0.0], np.cumsum(UNEVEN)])
    wanted = np.linspace(0, heights[-1], 62)
    for row, column in ((3, 4), (11, 0)):
        expected = np.interp(wanted, heights, pixels[:, row, column])
        assert np.allclose(volume.array[13 - column, 11 - row], expected, atol=1e-2)


def test_a_missing_slice_alone_is_interpolated(tmp_path):
    pixels = noise()
    series = only(write(tmp_path / "s", np.delete(pixels, 4, 0), np.delete(stack(), 4, 0)))
    expected = pixels.astype(np.float32)
    expected[4] = (expected[3] + expected[5]) / 2
    assert np.allclose(read_series(series).array, expected.transpose(2, 1, 0)[::-1, ::-1], atol=1e-2)
    assert series.note == "slices 2.50 to 5.00 mm apart, interpolated to 2.50 mm"


def test_positions_rounded_by_the_scanner_are_taken_as_even(tmp_path):
    series = only(write(tmp_path / "s", noise(), np.round(stack(gaps=(0.625,) * 9), 1)))
    assert series.note == ""
    assert read_series_header(series).shape == (14, 12, 10)


def test_a_close_pair_of_slices_does_not_multiply_all_others(tmp_path):
    series = only(write(tmp_path / "s", noise(), stack(gaps=(2.5,) * 8 + (0.05,))))
    assert read_series_header(series).spacing_mm[2] == pytest.approx(0.5, abs=0.01)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_text_of_the_header_is_one_printable_line(tmp_path):
    tags = {"SeriesDescription": "\x1b[31mhead\r\n  CT", "Modality": "O\nT"}
    series = only(write(tmp_path / "s", noise(), stack(), **tags))
    assert (series.description, series.problem) == ("[31mhead CT", "its modality is O T, not CT or MR")


def test_two_series_in_one_folder_are_parted_and_nothing_of_the_patient_is_kept(tmp_path):
    write(tmp_path / "s", noise(), stack())
    write(
        tmp_path / "s",
        noise() + 1,
        stack(CORONAL),
        CORONAL,
        start=10,
        uid=f"{UID}.7",
        PatientID=" ID-4711 ",
        Modality="MR",
    )
    write(tmp_path / "s", noise() + 2, stack(), start=20, uid=f"{UID}.8", PatientID="")
    first, second, third = sorted(find_series(sorted((tmp_path / "s").iterdir()))[0], key=lambda series: series.uid)
    assert [series.modality for series in (first, second, third)] == ["CT", "MR", "CT"]
    assert (second.uid, second.description, len(second.files)) == (f"{UID}.7", "head", 10)
    assert first.patient == second.patient == hashlib.sha256(b"ID-4711").hexdigest()[:12]
    assert third.patient == ""
    assert "4711" not in repr(first)
    assert "Doe" not in repr(first)


def test_echoes_and_time_points_are_parted_and_copies_left_out(tmp_path):
    for echo, time in np.ndindex(2, 3):
        tags = {"EchoTime": 4.6 * (echo + 1), "TemporalPositionIdentifier": time + 1}
        write(tmp_path / "s", noise() + 10 * echo + time, stack(), start=100 * echo + 10 * time, **tags)
    files = write(tmp_path / "copy", noise(), stack(), EchoTime=4.6, TemporalPositionIdentifier=1)
    found, _ = find_series([*sorted((tmp_path / "s").iterdir()), *files])
    assert sorted(series.part for series in found) == [
        f"EchoTime {echo}, TemporalPositionIdentifier {time}" for echo in (4.6, 9.2) for time in (1, 2, 3)
    ]
    assert len({series.uid for series in found}) == 6
    assert {len(series.files) for series in found} == {10}
    assert read_series(found[0]).array.shape == (14, 12, 10)


def test_an_acquisition_number_of_each_slice_does_not_part_a_series(tmp_path):
    numbers = {"AcquisitionNumber": list(range(10))}
    assert only(write(tmp_path / "s", noise(), stack(), **numbers)).part == ""
    write(tmp_path / "s", noise() + 1, stack(), start=10, **numbers)
    with pytest.raises(UnusableVolume, match="several images at the same position"):
        read_series(only(sorted((tmp_path / "s").iterdir())))


def test_two_passes_of_one_series_are_two_volumes(tmp_path):
    lower, upper = stack(gaps=(5.6,) * 9), np.add(stack(gaps=(5.6,) * 9), (0, 0, 2))
    write(tmp_path / "s", noise(), lower, AcquisitionNumber=1)
    write(tmp_path / "s", noise() + 7, upper, start=10, AcquisitionNumber=2)
    found, _ = find_series(sorted((tmp_path / "s").iterdir()))
    assert [(series.part, len(series.files), series.note) for series in found] == [
        ("AcquisitionNumber 1", 10, ""),
        ("AcquisitionNumber 2", 10, ""),
    ]
    first, second = (read_series(series) for series in found)
    assert np.array_equal(second.array, first.array + 7)
    assert second.affine[2, 3] - first.affine[2, 3] == pytest.approx(2)


@given(
    tag=st.sampled_from(["AcquisitionNumber", "EchoTime", "TemporalPositionIdentifier", "InversionTime"]),
    number=st.integers(2, 3),
    gap_mm=st.floats(2.0, 6),
    shift_mm=st.floats(0.3, 3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_even_stacks_that_a_tag_tells_apart_are_volumes_wherever_they_lie(
    tmp_path_factory, tag, number, gap_mm, shift_mm
):
    # Stacks that lie in each other's gaps at even distances are one stack, whose slices were taken in turns.
    assume(shift_mm < gap_mm and abs(number * shift_mm - gap_mm) > 0.5)
    folder = tmp_path_factory.mktemp("parts")
    for part in range(number):
        positions = np.add(stack(gaps=(gap_mm,) * 9), (0, 0, part * shift_mm))
        write(folder, noise() + part, positions, start=10 * part, **{tag: part + 1})
    found, _ = find_series(sorted(folder.iterdir()))
    assert [len(series.files) for series in found] == [10] * number
    assert {series.problem for series in found} == {None}


def test_slices_taken_in_turns_are_one_volume(tmp_path):
    numbers = {"AcquisitionNumber": [1 + index % 2 for index in range(10)]}
    assert len(only(write(tmp_path / "s", noise(), stack(), **numbers)).slices) == 10


def test_blocks_of_other_thickness_one_behind_the_other_are_one_volume(tmp_path):
    numbers = {"AcquisitionNumber": [1] * 6 + [2] * 5}
    files = write(tmp_path / "s", noise(11), stack(gaps=(2.5,) * 5 + (5.0,) * 5), **numbers)
    assert only(files).note == "slices 2.50 to 5.00 mm apart, interpolated to 2.50 mm"


@pytest.mark.parametrize("tags", [{"PatientID": "other"}, {"StudyInstanceUID": f"{UID}.88"}, {}])
def test_two_patients_studies_or_folders_under_one_uid_are_two_volumes(tmp_path, tags):
    files = write(tmp_path / "a", noise(), stack())
    files += write(tmp_path / "b", noise() + 1, stack(), start=0 if tags else 10, **tags)
    found, unreadable = find_series(files)
    assert unreadable == []
    assert [series.problem for series in found] == [None, None]
    assert len({series.uid for series in found}) == 2
    arrays = [read_series(series).array for series in found]
    assert np.array_equal(arrays[1], arrays[0] + 1)


def test_other_pixels_under_the_uids_of_another_folder_are_not_lost(tmp_path):
    files = write(tmp_path / "a", noise(), stack())
    files += write(tmp_path / "b", noise() + 1, stack())
    first, second = find_series(files)[0]
    assert np.array_equal(read_series(second).array, read_series(first).array + 1)


def test_the_name_of_a_volume_does_not_depend_on_others_that_come_later(tmp_path):
    files = [file for part in "ab" for file in write(tmp_path / part, noise() + ord(part), stack(), PatientID=part)]
    before = {series.slices[0].file.parent.name: series.uid for series in find_series(files)[0]}
    files = [*write(tmp_path / "0", noise(), stack(), PatientID="0"), *files]
    after = {series.slices[0].file.parent.name: series.uid for series in find_series(files)[0]}
    assert before.items() <= after.items()


def test_a_folder_that_holds_the_rest_of_a_stack_belongs_to_it(tmp_path):
    pixels, positions = noise(), stack()
    files = write(tmp_path / "0", pixels[:5], positions[:5])
    files += write(tmp_path / "1", pixels[5:], positions[5:], start=5)
    assert len(only(files).slices) == 10


@pytest.mark.parametrize("copied", [range(10), [4]])
def test_slices_that_are_stored_twice_count_once_and_are_said(tmp_path, copied):
    pixels, positions = noise(), stack()
    write(tmp_path / "s", pixels, positions)
    expected = read_series(only(sorted((tmp_path / "s").iterdir()))).array
    write(tmp_path / "s", pixels[list(copied)], positions[list(copied)], start=20)
    series = only(sorted((tmp_path / "s").iterdir()))
    assert series.note == f"{len(copied)} copies of slices left out"
    assert np.array_equal(read_series(series).array, expected)


@pytest.mark.parametrize(("bits", "signed"), [(12, 0), (16, 0), (12, 1)])
def test_inverted_images_are_as_bright_as_they_are_displayed(tmp_path, bits, signed):
    pixels = (np.abs(noise()) % 900 - 450 * signed).astype(np.int16)
    tags = {"PixelRepresentation": signed, "RescaleSlope": None, "RescaleIntercept": None, "Modality": "MR"}
    tags |= {"BitsStored": bits, "HighBit": bits - 1}
    plain = read_series(only(write(tmp_path / "p", pixels, stack(), **tags))).array
    shown = read_series(only(write(tmp_path / "s", pixels, stack(), PhotometricInterpretation="MONOCHROME1", **tags)))
    assert np.unique(shown.array + plain).tolist() == [-1 if signed else 2**bits - 1]
    if not signed:
        assert np.array_equal(shown.array, by_simpleitk(tmp_path / "s").get_fdata())


@pytest.mark.parametrize(("limit", "padded"), [(None, [-2000]), (-1990, [-2000, -1995, -1990])])
@pytest.mark.parametrize("written_as", ["SS", "US"])  # the second with the same bits, as many a file has it
def test_padding_is_air(tmp_path, limit, padded, written_as):
    pixels = noise()
    pixels[:, :2, :3] = np.resize(padded, (2, 3))
    tags = {"PixelPaddingValue": -2000} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
    tags = {
        name: pydicom.DataElement(name, written_as, value % 2**16 if written_as == "US" else value)
        for name, value in tags.items()
    }
    for modality, air in (("CT", -1024.0), ("MR", -1000.0)):
        pixels[0, 5, 5] = -1000
        files = write(tmp_path / modality, pixels, stack(), Modality=modality)
        for file in files:
            dataset = pydicom.dcmread(file)
            for element in tags.values():
                dataset.add(element)
            dataset.save_as(file)
        array = read_series(only(files)).array[::-1, ::-1].transpose(2, 1, 0)
        assert (array[:, :2, :3] == air).all()
        inside = np.ones(array.shape, bool)
        inside[:, :2, :3] = False
        assert np.array_equal(array[inside], pixels[inside])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("ORIGINAL\\PRIMARY\\P\\ND", "its values are phase, not magnitudes"),
        ("ORIGINAL\\PRIMARY\\PHASE MAP\\P\\FFE", "its values are phase"),
        ("DERIVED\\PRIMARY\\REAL", "its values are the real part"),
        ("ORIGINAL\\PRIMARY\\I\\SE", "its values are the imaginary part"),
        ("ORIGINAL\\PRIMARY\\M\\ND\\NORM", None),
    ],
)
def test_phase_and_parts_of_complex_images_are_no_magnitudes(tmp_path, words, reason):
    series = only(write(tmp_path / "s", noise(), stack(), Modality="MR", ImageType=words))
    assert series.problem is None if reason is None else reason in series.problem
    ct = only(write(tmp_path / "c", noise(), stack(), Modality="CT", ImageType="ORIGINAL\\PRIMARY\\AXIAL\\P"))
    assert ct.problem is None


def test_a_localizer_beside_the_slices_does_not_spoil_them(tmp_path):
    write(tmp_path / "s", noise(), stack())
    write(tmp_path / "s", noise(1), stack(SAGITTAL), SAGITTAL, start=10, ImageType="ORIGINAL\\PRIMARY\\LOCALIZER")
    found, _ = find_series(sorted((tmp_path / "s").iterdir()))
    assert sorted(series.problem or "" for series in found) == ["", "a localizer"]
    assert len({series.uid for series in found}) == 2


def enhanced(pixels, positions, times=1):
    """One file of all frames [time · slice, row, column], the geometry in functional groups (PS3.3 C.7.6.16)."""
    absent = dict.fromkeys(
        ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    )
    dataset = image(pixels[0], positions[0], OBLIQUE, SOPClassUID=ENHANCED_MR, Modality="MR", **absent)
    dataset.NumberOfFrames, dataset.PixelData = len(pixels), pixels.tobytes()

    def group(**macros):
        item = pydicom.Dataset()
        for macro, values in macros.items():
            inner = pydicom.Dataset()
            for name, value in values.items():
                setattr(inner, name, value)
            setattr(item, f"{macro}Sequence", [inner])
        return item

    directions = [f"{value:.9g}" for value in np.ravel(OBLIQUE)]
    dataset.SharedFunctionalGroupsSequence = [
        group(
            PlaneOrientation={"ImageOrientationPatient": directions}, PixelMeasures={"PixelSpacing": list(SPACING_MM)}
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePosition={"ImagePositionPatient": [f"{value:.9g}" for value in positions[frame % len(positions)]]},
            FrameContent={"TemporalPositionIndex": frame // len(positions) + 1},
            PixelValueTransformation={"RescaleSlope": frame + 1, "RescaleIntercept": -frame},
        )
        for frame in range(len(pixels))
    ]
    return dataset


def test_an_enhanced_file_equals_its_classic_series(tmp_path):
    pixels, positions, frames = noise(), stack(OBLIQUE), np.arange(10)
    tags = {"RescaleSlope": (frames + 1).tolist(), "RescaleIntercept": (-frames).tolist()}
    classic = read_series(only(write(tmp_path / "s", pixels, positions, OBLIQUE, **tags)))
    order = np.random.default_rng(1).permutation(10)
    dataset = enhanced(pixels[order], positions[order])
    for group, frame in zip(dataset.PerFrameFunctionalGroupsSequence, order, strict=True):
        macro = group.PixelValueTransformationSequence[0]
        macro.RescaleSlope, macro.RescaleIntercept = int(frame) + 1, -int(frame)
    dataset.save_as(tmp_path / "e.dcm", enforce_file_format=True)
    series = only([tmp_path / "e.dcm"])
    volume = read_series(series)
    assert series.files == (tmp_path / "e.dcm",)
    assert np.array_equal(volume.array, classic.array)
    assert np.allclose(volume.affine, classic.affine)


def test_time_points_of_an_enhanced_file_are_parted(tmp_path):
    dataset = enhanced(np.concatenate([noise(), noise()]), stack(OBLIQUE))
    dataset.save_as(tmp_path / "e.dcm", enforce_file_format=True)
    found, _ = find_series([tmp_path / "e.dcm"])
    assert [series.part for series in found] == ["TemporalPositionIndex 1", "TemporalPositionIndex 2"]
    assert np.array_equal([piece.frame for piece in found[1].slices], np.arange(10, 20))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "SEG"}, "its modality is SEG, not CT or MR"),
        ({"Modality": None}, "its modality is unknown, not CT or MR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"PhotometricInterpretation": "RGB"}, "its pixels are RGB, one grey value each is needed"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "may be inverted Hounsfield units"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient, so where its voxels lie is unknown"),
        ({"ImageOrientationPatient": None}, "no ImageOrientationPatient"),
        ({"PixelSpacing": None}, "no PixelSpacing"),
        ({"RescaleSlope": 0}, "its RescaleSlope is 0.0, so what its values mean is unknown"),
        ({"PixelSpacing": [1, 0]}, "its PixelSpacing is not positive"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two directions at right angles"),
        ({"ImageOrientationPatient": [0] * 6}, "not two directions at right angles"),
        ({"NumberOfFrames": 3}, "several frames, and not the position of each"),
        ({"ImagePositionPatient": [0, 0, 0]}, "several images at the same position"),
    ],
)
def test_what_is_no_volume_of_grey_values_in_space_is_refused(tmp_path, tags, reason):
    tags = {key: [value] * 10 for key, value in tags.items()}
    found, unreadable = find_series(write(tmp_path / "s", noise(), stack(), **tags))
    assert unreadable == []
    for read in (read_series_header, read_series):
        with pytest.raises(UnusableVolume, match=reason):
            read(found[0])


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        (stack(gaps=()), "a single slice"),
        (stack(gaps=(2.5,) * 4), "too small"),
        (stack(gaps=(7.0,) * 4 + (2.5,)), "too small"),
        (stack(gaps=(2.5,) * 5 + (42.0,) + (2.5,) * 5), "a hole of 42 mm between two of its 12 slices"),
        (stack() + np.array([0, 0, 0, 0, 0, 4, 4, 4, 4, 0])[:, None] * (1, 0, 0), "its slices do not lie on one line"),
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path, positions, reason):
    with pytest.raises(UnusableVolume, match=reason):
        read_series(only(write(tmp_path / "s", noise(len(positions)), positions)))


def cut_off(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("share", [0.9, 0.999])
def test_a_file_whose_pixels_are_cut_off_is_named(tmp_path, share, capfd):
    files = write(tmp_path / "s", noise(), stack())
    cut_off(files[3], share)
    series = only(files)
    with pytest.raises(UnusableVolume, match=rf"^{files[3].name}: ") as caught:
        read_series(series)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_whose_header_is_cut_off_is_a_missing_slice(tmp_path, capfd):
    files = write(tmp_path / "s", noise(), stack())
    inside = [file for file in files if abs(pydicom.dcmread(file).ImagePositionPatient[2] - 50) < 1]
    cut_off(inside[0], 0.5)
    found, _ = find_series(files)
    lacking, lost = sorted(found, key=lambda series: len(series.files), reverse=True)
    assert lacking.note == "slices 2.50 to 5.00 mm apart, interpolated to 2.50 mm"
    assert (lost.files, lost.problem) == ((inside[0],), "no PhotometricInterpretation, so it is cut off or no image")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git-LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (np.random.default_rng(0).bytes(5000), "unreadable"),
        (bytes(128) + b"DICM" + np.random.default_rng(0).bytes(5000), "unreadable"),
        (None, "no such file"),
    ],
)
def test_what_is_not_dicom_is_listed_with_its_reason(tmp_path, content, reason):
    path = tmp_path / "a.dcm"
    if content is not None:
        path.write_bytes(content)
    found, ((file, said),) = find_series([path])
    assert (found, file) == ([], path)
    assert reason in said


def test_a_file_that_vanished_is_named(tmp_path):
    series = only(write(tmp_path / "s", noise(), stack()))
    series.files[2].unlink()
    with pytest.raises(UnusableVolume, match=f"^{series.files[2].name}: no such file"):
        read_series(series)


def test_dicom_is_told_by_its_mark_and_only_dcm_by_its_name(tmp_path):
    marked, bare = bytes(128) + b"DICM", bytes(140)
    for name, content, told in [
        ("a.dcm", marked, True),
        ("A.DCM", bare, True),
        ("a.ima", marked, True),
        ("IM0001", marked, True),
        ("IM0002", bare, False),
        ("IM0003", bytes.fromhex("0800 0500 4353 0a00") + b"ISO_IR 100" + bytes(140), True),  # no preamble, explicit
        ("IM0004", bytes.fromhex("0800 0000 0400 0000") + bytes(140), True),  # no preamble, implicit
        ("IM0005", bytes.fromhex("0800 0000 ffff ff7f") + bytes(140), False),
        ("1.2.840.113619.2", marked, True),
        ("DICOMDIR", marked, False),
        ("a.nii", marked, False),
        ("a.txt", marked, False),
    ]:
        (tmp_path / name).write_bytes(content)
        assert is_dicom(tmp_path / name) is told, name
    assert not is_dicom(tmp_path / "missing")


def test_the_files_that_pydicom_brings_are_read_or_refused_with_a_reason(capfd):
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    files = sorted(path for path in folder.rglob("*") if path.is_file() and is_dicom(path))
    found, unreadable = find_series(files)
    assert len(files) > 100
    assert sum(len(series.slices) for series in found) > 100
    assert all(reason and "\n" not in reason for _, reason in unreadable)
    for series in found:
        with pytest.raises(UnusableVolume):
            read_series(series)
    assert {"a localizer", "its modality is RTDOSE, not CT or MR"} <= {series.problem for series in found}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["CT_small", "MR_small", "MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"]
)
def test_a_real_slice_repeated_equals_simpleitk(tmp_path, name):
    dataset = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / f"{name}.dcm")
    row, column = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
    first = np.array(dataset.ImagePositionPatient, float)
    for index in range(8):
        dataset.ImagePositionPatient = [f"{value:.9g}" for value in first + 3 * index * np.cross(row, column)]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{index}"
        dataset.save_as(tmp_path / f"{index}.dcm")
    volume, expected = read_series(only(sorted(tmp_path.iterdir()))), by_simpleitk(tmp_path)
    assert np.array_equal(volume.array, expected.get_fdata())
    assert np.allclose(volume.affine, expected.affine, rtol=0, atol=1e-4)


@pytest.mark.parametrize("module", ["pydicom", "imagecodecs"])
def test_without_the_extra_the_way_to_it_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'voxelwave\[dicom\]'"):
        find_series([])


@pytest.mark.parametrize("explicit", [True, False])
def test_files_without_preamble_and_suffix_are_read_as_those_with(tmp_path, explicit):
    files = write(tmp_path / "with", noise(), stack())
    (tmp_path / "without").mkdir()
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        del dataset.file_meta
        dataset.save_as(tmp_path / "without" / f"IM{number:04d}", implicit_vr=not explicit, little_endian=True)
    bare = sorted((tmp_path / "without").iterdir())
    assert all(is_dicom(file) for file in bare)
    assert np.array_equal(read_series(only(bare)).array, read_series(only(files)).array)


def test_a_deflated_file_that_inflates_without_end_is_refused_before_that(tmp_path, monkeypatch):
    monkeypatch.setattr("voxelwave.data.reading.dicom_pixels.MOST_INFLATED", 1 << 20)
    files = []
    for name, side in (("small", 64), ("large", 1024)):
        dataset = image(np.zeros((side, side), np.int16), (0, 0, 0))
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        files.append(tmp_path / f"{name}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    found, unreadable = find_series(files)
    assert [series.files for series in found] == [(files[0],)]
    assert [(path, "it inflates to more than 1 MB" in reason) for path, reason in unreadable] == [(files[1], True)]


def test_several_files_of_all_frames_of_one_series_are_as_many_volumes(tmp_path):
    values = [noise() + number for number in range(3)]
    for number, pixels in enumerate(values):
        dataset = enhanced(pixels, stack(OBLIQUE))
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{number}"
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    scans, unusable = find_scans([str(tmp_path)])
    assert len(scans) == 3
    assert len({scan.name for scan in scans}) == 3
    assert unusable == []
    assert {series_uid(scan.series.uid) for scan in scans} == {UID}
    # Under one SOPInstanceUID, which nobody may give twice, nothing is lost either; names stay as files are added.
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.7"
        dataset.save_as(file)
    assert len(find_scans([str(tmp_path)])[0]) == 3


def test_folders_of_one_name_under_one_uid_are_volumes_of_their_own(tmp_path):
    for visit in ("1", "2"):
        (tmp_path / visit).mkdir()
        write(
            tmp_path / visit / "T1",
            noise() + int(visit),
            stack(),
            SOPInstanceUID=[f"{UID}.{visit}.{n}" for n in range(10)],
        )
    found, unreadable = find_series(sorted(tmp_path.rglob("*.dcm")))
    assert len(found) == len({series.uid for series in found}) == 2
    assert unreadable == []


def test_a_group_of_the_maker_does_not_say_what_the_standard_does(tmp_path):
    dataset = enhanced(noise(), stack(OBLIQUE))
    before = dataset.PerFrameFunctionalGroupsSequence[3].PixelValueTransformationSequence[0].RescaleSlope
    for group in dataset.PerFrameFunctionalGroupsSequence:
        own = pydicom.Dataset()
        own.RescaleSlope, own.ImageType = 70, ["ORIGINAL", "PRIMARY", "PHASE MAP", "P"]
        group.private_block(0x2005, "Philips MR Imaging DD 005", create=True).add_new(0x0F, "SQ", [own])
    dataset.save_as(tmp_path / "e.dcm", enforce_file_format=True)
    series = only([tmp_path / "e.dcm"])
    assert series.problem is None
    assert next(piece for piece in series.slices if piece.frame == 3).slope == float(before)


def test_pixels_whose_bits_lie_elsewhere_are_refused(tmp_path):
    series = only(write(tmp_path / "s", noise(), stack(), BitsStored=12, HighBit=15, PixelRepresentation=0))
    assert series.problem == "its HighBit is not BitsStored - 1, so which bits of a pixel are its value is unknown"


def test_a_pipe_is_no_dicom_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "IM0001")
    assert not is_dicom(tmp_path / "IM0001")


@pytest.mark.parametrize("codec", ["jpeg8", "jpegls", "jpeg2k"])
def test_a_stream_that_claims_another_size_is_not_decompressed(tmp_path, monkeypatch, codec):
    syntax = {"jpeg8": "JPEGLosslessSV1", "jpegls": "JPEGLSLossless", "jpeg2k": "JPEG2000Lossless"}[codec]
    pixels = (noise() & 0xFFF).astype(np.uint16)
    options = {"lossless": True, "bitspersample": 16} if codec == "jpeg8" else {"level": 0} if codec == "jpeg2k" else {}

    def save(number, rows):
        frame = getattr(imagecodecs, f"{codec}_encode")(pixels[number], **options)
        dataset = image(pixels[number], stack()[number], number=number, PixelRepresentation=0, Rows=rows)
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        dataset.PixelData = pydicom.encaps.encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        return tmp_path / f"{number}.dcm"

    assert np.array_equal(read_pixels(save(0, 12))[0], pixels[0])
    monkeypatch.setattr(imagecodecs, f"{codec}_decode", None)
    with pytest.raises(UnusableVolume, match="its pixels are not 1 times 13 by 14"):
        read_pixels(save(0, 13))
