"""Reading against nibabel, resampling against a physical point, and the refusal of what is no volume."""

from __future__ import annotations

import gzip
import os
import struct

import nibabel
import numpy as np
import pytest

from voxelwave.data.modalities.mri import MRI
from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.data.reading.volume import Volume, resample
from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.data.scaled import read_scaled
from voxelwave.errors import UnusableVolume

OBLIQUE = np.array([[0, 0, -2.0, 50], [1.5, 0, 0, -20], [0, -1, 0, 33], [0, 0, 0, 1]])


def write(path, array, affine=OBLIQUE):
    image = nibabel.MGHImage if path.suffix == ".mgz" else nibabel.Nifti1Image
    nibabel.save(image(array, affine), path)
    return path


def noise(shape=(10, 12, 14)):
    return np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
def test_axes_and_affine_equal_those_of_nibabel(tmp_path, name):
    path = write(tmp_path / name, noise())
    volume = read_volume(path)
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    assert np.array_equal(volume.array, canonical.get_fdata(dtype=np.float32))
    assert np.allclose(volume.affine, canonical.affine)
    assert volume.spacing_mm == pytest.approx((2, 1.5, 1))
    assert volume.array.flags.c_contiguous


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata()
    assert expected.min() == -1024
    assert np.allclose(read_volume(tmp_path / "a.nii").array, expected)


def test_the_header_is_read_as_stored(tmp_path):
    info = read_header(write(tmp_path / "a.nii.gz", noise()))
    assert (info.shape, info.orientation, info.dtype) == ((10, 12, 14), "AIL", "float32")
    assert info.spacing_mm == pytest.approx((1.5, 1, 2))
    assert info.problem() is None


@pytest.mark.parametrize("spacing_mm", [1.0, (1.0, 2.0, 1.5)])
def test_a_point_keeps_its_place_in_mm_through_orientation_and_resampling(tmp_path, spacing_mm):
    voxels = np.stack(np.meshgrid(*map(np.arange, (24, 26, 22)), indexing="ij"), -1)
    centre_mm = OBLIQUE[:3, :3] @ (12, 15, 9) + OBLIQUE[:3, 3]
    distance = np.linalg.norm(voxels @ OBLIQUE[:3, :3].T + OBLIQUE[:3, 3] - centre_mm, axis=-1)
    path = write(tmp_path / "a.nii", np.exp(-((distance / 5) ** 2)).astype(np.float32))
    volume = read_volume(path, spacing_mm=spacing_mm)
    weights = volume.array.astype(np.float64)
    places = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij"), -1)
    centre = (weights[..., None] * places).sum((0, 1, 2)) / weights.sum()
    assert np.allclose(volume.affine[:3, :3] @ centre + volume.affine[:3, 3], centre_mm, atol=0.1)
    assert volume.spacing_mm == pytest.approx(np.broadcast_to(spacing_mm, 3))


def test_a_spacing_that_asks_for_too_many_voxels_is_refused_before_they_are_made(tmp_path):
    volume = Volume(np.zeros((20, 20, 20), np.float32), np.eye(4))
    with pytest.raises(UnusableVolume, match=r"8e\+09 voxels at the spacing asked for"):
        resample(volume, 0.01)


def test_channels_are_resampled_each_like_a_volume(tmp_path):
    array = np.random.default_rng(0).uniform(0, 1, (10, 11, 12, 1, 3)).astype(np.float32)
    volume = read_volume(write(tmp_path / "a.nii", array), spacing_mm=1.2)
    for channel in range(3):
        single = read_volume(write(tmp_path / "c.nii", array[..., 0, channel]), spacing_mm=1.2)
        assert np.allclose(volume.array[..., channel], single.array, atol=1e-6)


def test_a_volume_at_the_spacing_asked_for_is_left_alone(tmp_path):
    path = write(tmp_path / "a.nii", noise(), np.eye(4))
    assert np.array_equal(read_volume(path, spacing_mm=1.0).array, read_volume(path).array)


def structured(shape):
    return np.zeros(shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (noise((10, 10, 10, 2)), "4 axes"),
        (noise((10, 10, 10, 2, 3)), "5 axes"),
        (noise((10, 10, 3)), "too small"),
        (noise((64, 64)), "too small"),
        (noise().astype(np.complex64), "complex"),
        (structured((10, 10, 10)), "RGB"),
    ],
)
def test_what_is_not_one_volume_of_numbers_is_refused(tmp_path, array, reason):
    with pytest.raises(UnusableVolume, match=reason):
        read_volume(write(tmp_path / "a.nii", array))


def with_header(path, array, **fields):
    """Write a file whose header has other values than nibabel would give it."""
    write(path, array)
    with path.open("r+b") as file:
        header = nibabel.Nifti1Header.from_fileobj(file, check=False)
        for name, value in fields.items():
            header[name] = value
        file.seek(0)
        file.write(header.binaryblock)
    return path


@pytest.mark.parametrize(("units", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 | 8, 1), (1 | 16, 1000), (6, 1)])
def test_a_header_in_metres_or_microns_is_read_in_millimetres(tmp_path, units, mm):
    fields = {name: OBLIQUE[row] / mm for row, name in enumerate(("srow_x", "srow_y", "srow_z"))}
    path = with_header(tmp_path / "a.nii", noise(), xyzt_units=units, **fields)
    expected = read_volume(write(tmp_path / "b.nii", noise()))
    assert np.allclose(read_header(path).affine, OBLIQUE)
    volume = read_volume(path)
    assert np.allclose(volume.affine, expected.affine)
    assert np.array_equal(volume.array, expected.array)


def test_an_sform_that_leads_nowhere_leaves_the_place_to_the_qform(tmp_path):
    path = with_header(tmp_path / "a.nii", noise(), srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)
    with pytest.raises(UnusableVolume, match="singular"):
        read_volume(
            with_header(tmp_path / "b.nii", noise(), srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4, qform_code=0)
        )
    qform = nibabel.load(with_header(path, noise(), sform_code=0, qform_code=1)).affine
    path = with_header(path, noise(), sform_code=1, qform_code=1, srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)
    assert np.allclose(read_header(path).affine, qform)
    assert np.allclose(qform, OBLIQUE, atol=1e-4)


@pytest.mark.parametrize("start", [0, 1, 347])
def test_voxels_that_are_said_to_begin_within_the_header_are_refused(tmp_path, start):
    with pytest.raises(UnusableVolume, match=f"begin at byte {start}, within the header|offset {start} too low"):
        read_volume(with_header(tmp_path / "a.nii", noise(), vox_offset=start))


def test_a_singular_affine_is_refused(tmp_path):
    path = write(tmp_path / "a.nii", noise(), np.eye(4))
    content = bytearray(path.read_bytes())
    content[252:256] = np.array([0, 1], dtype="<i2").tobytes()  # qform_code, sform_code
    content[296:312] = bytes(16)  # srow_y
    path.write_bytes(content)
    with pytest.raises(UnusableVolume, match="singular"):
        read_volume(path)


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "missing", "folder"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
def test_no_damage_raises_anything_but_unusable(tmp_path, name, damage, capfd):
    path = write(tmp_path / name, noise())
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        path.unlink()
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "header" and path.suffix == ".nii":
        path.write_bytes(content[:40] + b"\xff" * 60 + content[100:])
    elif damage == "header":
        plain = gzip.decompress(content)
        path.write_bytes(gzip.compress(plain[:4] + b"\xff" * 60 + plain[64:]))
    else:
        path.write_bytes(content[:middle] if damage == "cut" else b"")
    with pytest.raises(UnusableVolume) as refused:
        read_volume(path)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


LABEL_NAMES = ["x_seg", "T1_lesion_2", "aparc+aseg", "sub-1_desc-brain_mask", "Brain.Tumour", "label01"]
IMAGE_NAMES = ["lesion_study_T1", "seg3d_T1", "brainmask", "mask_study_0001_T2", "T1", "segmented_MR"]


@pytest.mark.parametrize("name", LABEL_NAMES)
def test_label_maps_are_told_by_the_last_word_of_their_name(tmp_path, name):
    assert "by its name" in label_map_reason(tmp_path / f"{name}.nii.gz")


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_images_that_only_mention_labels_are_kept(tmp_path, name):
    assert label_map_reason(tmp_path / "masks" / f"{name}.nii.gz", noise()) is None


def test_label_maps_are_told_by_their_values(tmp_path):
    path = tmp_path / "x.nii"
    few = np.random.default_rng(0).integers(0, 30, (20, 20, 20)).astype(np.float32)
    regions = np.repeat(np.arange(1, 101, dtype=np.float32), 100).reshape(10, 10, 100)
    eight_bit = np.random.default_rng(0).integers(0, 256, (20, 20, 20)).astype(np.float32)
    assert "30 whole numbers" in label_map_reason(path, few)
    assert "equal their neighbour" in label_map_reason(path, regions)
    assert label_map_reason(path, eight_bit) is None
    assert label_map_reason(path, few / 7) is None


def test_a_label_map_is_refused_even_where_resampling_would_blur_it(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (12, 12, 12)).astype(np.uint8)
    with pytest.raises(UnusableVolume, match="label map"):
        read_scaled(write(tmp_path / "x.nii", labels), MRI(), spacing_mm=0.8)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
def test_a_suffix_that_says_the_wrong_thing_of_compression_does_not_matter(tmp_path, name):
    path = write(tmp_path / name, noise())
    expected, content = read_volume(path), path.read_bytes()
    path.write_bytes(gzip.compress(content) if name == "a.nii" else gzip.decompress(content))
    assert np.array_equal(read_volume(path).array, expected.array)
    assert np.array_equal(read_volume(path).affine, expected.affine)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("intercept", [np.nan, np.inf])
def test_an_intercept_that_is_no_number_is_zero_as_itk_reads_it(tmp_path, kind, intercept):
    image = kind(np.arange(1000, dtype=np.int16).reshape(10, 10, 10), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    form, place = ("<f", 112) if kind is nibabel.Nifti1Image else ("<d", 176)
    size = struct.calcsize(form)
    content[place : place + 2 * size] = struct.pack(form, 2) + struct.pack(form, intercept)
    (tmp_path / "a.nii").write_bytes(content)
    array = read_volume(tmp_path / "a.nii").array
    assert np.array_equal(array, 2.0 * np.asarray(image.dataobj))
    if kind is nibabel.Nifti2Image:  # which ITK does not read
        return
    sitk = pytest.importorskip("SimpleITK", reason="the oracle")
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii"))).T
    assert np.array_equal(array, itk)


def test_a_header_that_does_not_say_where_it_lies_is_noted(tmp_path):
    assert read_header(write(tmp_path / "a.nii", noise())).note == ""
    image = nibabel.load(tmp_path / "a.nii")
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.Nifti1Image(noise(), None, image.header).to_filename(tmp_path / "b.nii")
    header = read_header(tmp_path / "b.nii")
    assert header.note == (
        f"its header does not say where it lies (both form codes are 0): its axes are taken as {header.orientation}"
    )


def test_channels_in_front_are_read_as_channels_behind(tmp_path):
    windows = np.random.default_rng(0).uniform(0, 1, (3, 10, 12, 14)).astype(np.float32)
    behind = read_volume(write(tmp_path / "behind.nii", np.moveaxis(windows, 0, -1)))
    path = write(tmp_path / "in_front.nii", windows)
    assert np.array_equal(read_volume(path).array, behind.array)
    assert np.array_equal(read_volume(path).affine, behind.affine)
    assert read_header(path).problem(1) is not None  # three channels are no MRI
    assert "three channels" in read_header(path).note


def test_a_header_of_more_voxels_than_are_read_is_refused_before_they_are(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4))
    image.header["dim"][1:4] = 2000
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        image.header.write_to(file)
    with pytest.raises(UnusableVolume, match=r"8e\+09 voxels, and at most 1e\+09 are read"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.nii")
    with pytest.raises(UnusableVolume, match="a pipe"):
        read_header(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
def test_a_flipped_bit_of_compressed_values_is_damage_and_what_lies_behind_them_does_not_count(tmp_path, name):
    path = write(tmp_path / name, noise().astype(np.int16))
    plain = gzip.decompress(path.read_bytes())
    content = bytearray(gzip.compress(plain, compresslevel=0))  # so that each bit is one of a value
    expected = read_volume(path).array
    for behind in (b"", b"garbage" * 50, bytes(512)):
        path.write_bytes(content + behind)
        assert np.array_equal(read_volume(path).array, expected)
    for place in (700, len(content) // 2, len(content) - 200):
        changed = content.copy()
        changed[place] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(UnusableVolume, match=r"^damaged: its compressed data does not agree with its checksum$"):
            read_volume(path)
    path.write_bytes(content[:-6])
    with pytest.raises(UnusableVolume, match="cut off"):
        read_volume(path)


def test_a_name_of_any_case_is_read(tmp_path):
    path = write(tmp_path / "a.nii.gz", noise())
    assert np.array_equal(
        read_volume(path.rename(tmp_path / "A.Nii.Gz")).array, read_volume(write(path, noise())).array
    )


def test_an_sform_that_holds_no_numbers_leaves_the_qform(tmp_path):
    image = nibabel.Nifti1Image(noise(), OBLIQUE)
    image.set_qform(OBLIQUE, 1)
    image.header["srow_y"] = np.nan
    nibabel.Nifti1Image(noise(), None, image.header).to_filename(tmp_path / "a.nii")
    assert np.allclose(read_header(tmp_path / "a.nii").affine, OBLIQUE, atol=1e-4)


def test_two_affines_that_disagree_on_left_and_right_are_noted(tmp_path):
    image = nibabel.Nifti1Image(noise(), None)
    image.set_sform(np.diag([2.0, 2, 2, 1]), 2)
    image.set_qform(np.diag([-2.0, 2, 2, 1]), 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert (
        "its two affines disagree (sform RAS, qform LAS): its axes are taken as RAS"
        in read_header(tmp_path / "a.nii").note
    )
