"""NRRD files against SimpleITK and against the NIfTI file of the same image, and what is refused."""

from __future__ import annotations

import sys

import nibabel
import numpy as np
import pytest

from voxelwave.data.modalities import UnusableVolume
from voxelwave.data.nifti import read_volume
from voxelwave.data.nrrd import read_nrrd, read_nrrd_header
from voxelwave.errors import InputError

nrrd = pytest.importorskip("nrrd", reason="reading NRRD is an extra: pip install 'voxelwave[dicom]'")

DIRECTIONS = "space directions: (0,2,0.3) (1.5,0,0) (0,0.4,-3)\nspace origin: (1,2,3)\n"


def noise(shape=(8, 9, 10)):
    return np.random.default_rng(0).integers(-1000, 2000, shape, dtype=np.int16)


def write(path, array, fields, *, kind="short", encoding="raw", data=None):
    """Write a file by the letter of the format; the first axis of `array` is the fastest."""
    sizes = " ".join(map(str, array.shape))
    first = f"NRRD0005\ntype: {kind}\ndimension: {array.ndim}\nsizes: {sizes}\nendian: little\nencoding: {encoding}\n"
    path.write_bytes(f"{first}{fields}\n".encode() + (array.tobytes("F") if data is None else data))
    return path


def simpleitk():
    sitk = pytest.importorskip("SimpleITK", reason="the oracle of orientation")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def in_ras(path):
    """The array and the affine of SimpleITK, its axes turned by nibabel."""
    sitk = simpleitk()
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    values = np.moveaxis(sitk.GetArrayFromImage(image), (0, 1, 2), (2, 1, 0)).astype(np.float32)
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1]) @ affine))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("name", ["a.nrrd", "compressed.nrrd", "a.nhdr"])
def test_an_oblique_image_equals_itself_as_nifti(tmp_path, order, name):
    sitk = simpleitk()
    image = sitk.GetImageFromArray(noise())
    directions = np.linalg.qr([[0.9, 0.2, 0.1], [-0.3, 0.8, 0.4], [0.1, -0.5, 0.9]])[0][:, order]
    image.SetDirection(directions.ravel().tolist())
    image.SetSpacing((0.7, 1.5, 2.5))
    image.SetOrigin((-20.5, 31.25, 7.0))
    sitk.WriteImage(image, str(tmp_path / name), useCompression=name.startswith("compressed"))
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    volume, expected = read_nrrd(tmp_path / name), read_volume(tmp_path / "a.nii")
    assert np.array_equal(volume.array, expected.array)
    assert np.allclose(volume.affine, expected.affine, atol=1e-5)
    info, told = read_nrrd_header(tmp_path / name), nibabel.load(tmp_path / "a.nii")
    assert (info.shape, info.dtype) == (told.shape, "int16")
    assert np.allclose(info.affine, told.affine, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        *(
            f"space: {space}\n{DIRECTIONS}"
            for space in ("left-posterior-superior", "LPS", "Right-Anterior-Superior", "RAS")
        ),
        *(
            f"space: {space}\n{DIRECTIONS}"
            for space in ("left-anterior-superior", "LAS", "scanner-xyz", "3D-right-handed")
        ),
        f"space dimension: 3\n{DIRECTIONS}",
        "spacings: 1 2 3\n",
        "spacings: 1 -2 nan\n",
        "",
    ],
)
def test_the_space_is_read_as_itk_reads_it(tmp_path, fields):
    path = write(tmp_path / "a.nrrd", noise(), fields)
    volume, expected = read_nrrd(path), in_ras(path)
    assert np.array_equal(volume.array, expected.get_fdata())
    assert np.allclose(volume.affine, expected.affine, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("unsigned char", "u1"),
        ("ushort", "<u2"),
        ("int32_t", "<i4"),
        ("long long", "<i8"),
        ("float", "<f4"),
        ("double", "<f8"),
    ],
)
def test_each_type_is_read_and_named_as_numpy_does(tmp_path, kind, dtype):
    array = np.abs(noise() // 12).astype(dtype)
    path = write(tmp_path / "a.nrrd", array, f"space: RAS\n{DIRECTIONS}", kind=kind)
    assert read_nrrd_header(path).dtype == array.dtype.name
    assert np.array_equal(read_nrrd(path).array, in_ras(path).get_fdata(dtype=np.float32))


@pytest.mark.parametrize("kind", ["vector", "list"])
@pytest.mark.parametrize("place", [0, 3])
def test_three_components_become_channels_wherever_their_axis_is(tmp_path, kind, place):
    components = noise((8, 9, 10, 3))
    kinds, rows = ["domain"] * 3, DIRECTIONS.split("\n")[0].split()[2:]
    kinds.insert(place, kind)
    rows.insert(place, "none")
    fields = f"space: LPS\nkinds: {' '.join(kinds)}\nspace directions: {' '.join(rows)}\nspace origin: (1,2,3)\n"
    path = write(tmp_path / "a.nrrd", np.moveaxis(components, -1, place), fields)
    volume = read_nrrd(path)
    assert read_nrrd_header(path).shape == (8, 9, 10, 3)
    for channel in range(3):
        single = read_nrrd(write(tmp_path / "c.nrrd", components[..., channel], f"space: LPS\n{DIRECTIONS}"))
        assert np.array_equal(volume.array[..., channel], single.array)
        assert np.allclose(volume.affine, single.affine)


def test_a_volume_of_several_is_read_by_its_number(tmp_path):
    path = write(tmp_path / "a.nrrd", noise((5, 8, 9, 10)), "kinds: list domain domain domain\nspacings: nan 1 1 1\n")
    assert read_nrrd_header(path).frames() == 5
    assert np.array_equal(read_nrrd(path, frame=3).array, noise((5, 8, 9, 10))[3, ::-1, ::-1])
    with pytest.raises(UnusableVolume, match="4 axes"):
        read_nrrd(path)


@pytest.mark.parametrize(
    ("array", "fields", "reason"),
    [
        (noise((8, 9, 10, 2)), "kinds: domain domain domain vector\n", "4 axes"),
        (noise((3, 8, 9, 10)), "kinds: RGB-color domain domain domain\n", "RGB"),
        (noise((2, 8, 9, 10)), "kinds: complex domain domain domain\n", "complex"),
        (noise((64, 64)), "", "too small"),
        (noise((8, 9, 5)), "", "too small"),
        (noise(), "space directions: (1,0,0) (0,1,0) (0,2,0)\nspace: LPS\n", "singular"),
        (noise(), "space directions: (1,0,0,0) (0,1,0,0) (0,0,1,0)\nspace: LPST\n", "its space has 4 dimensions"),
    ],
)
def test_what_is_not_one_volume_of_numbers_is_refused(tmp_path, array, fields, reason):
    with pytest.raises(UnusableVolume, match=reason):
        read_nrrd(write(tmp_path / "a.nrrd", array, fields))


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(tmp_path, encoding, share):
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), noise(), {"encoding": encoding})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnusableVolume, match=r"unreadable|cut off") as caught:
        read_nrrd(path)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unreadable"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git-LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (np.random.default_rng(0).bytes(5000), "unreadable"),
        (b"NRRD0005\n# nothing\n\n", "unreadable"),
        (None, "no such file"),
    ],
)
def test_what_is_not_nrrd_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.nrrd"
    if content is not None:
        path.write_bytes(content)
    for read in (read_nrrd_header, read_nrrd):
        with pytest.raises(UnusableVolume, match=reason):
            read(path)


def test_a_detached_header_without_its_data_is_refused(tmp_path):
    path = write(tmp_path / "a.nhdr", noise(), "data file: missing.raw\n", data=b"")
    with pytest.raises(UnusableVolume, match=r"^the file with its data is missing$"):
        read_nrrd(path)


def test_without_the_extra_the_way_to_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nrrd", None)
    with pytest.raises(InputError, match=r"pip install 'voxelwave\[dicom\]'"):
        read_nrrd(tmp_path / "a.nrrd")
