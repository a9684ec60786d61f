"""NRRD files lie in space as ITK and nibabel say."""

from __future__ import annotations

import bz2
import gzip
import sys
import tracemalloc

import nibabel
import numpy as np
import pytest

from voxelwave.data.reading.nrrd import data_files, read_nrrd, read_nrrd_header
from voxelwave.errors import InputError, UnusableVolume

nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed: pip install 'voxelwave[dicom]'")
sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is the oracle")

ANGLE = np.deg2rad(20)
ROTATED = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
DIRECTIONS = {"lps": np.eye(3), "flipped": np.diag([-1.0, 1, -1]), "permuted": np.eye(3)[[2, 0, 1]], "oblique": ROTATED}


def noise(dtype=np.int16):
    return np.random.default_rng(0).integers(-900, 900, (10, 11, 12)).astype(dtype)


def write(path, array, direction=None):
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((1.5, 0.7, 2.0))
    image.SetOrigin((-20.0, 30.0, 5.0))
    image.SetDirection((np.eye(3) if direction is None else direction).reshape(-1).tolist())
    sitk.WriteImage(image, str(path), useCompression=path.stem != "raw")
    return path


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_values_and_place_are_those_of_the_same_image_as_nifti(tmp_path, name, dtype):
    path = write(tmp_path / "a.nrrd", noise(dtype), DIRECTIONS[name])
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / "a.nii"))
    expected = nibabel.as_closest_canonical(nibabel.load(tmp_path / "a.nii"))
    volume = read_nrrd(path)
    assert np.array_equal(volume.array, expected.get_fdata(dtype=np.float32))
    assert np.allclose(volume.affine, expected.affine, atol=1e-4)
    header = read_nrrd_header(path)
    assert header.shape == (10, 11, 12)
    assert header.spacing_mm == pytest.approx((1.5, 0.7, 2.0))


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("LPS", (-1, -1, 1))],
)
def test_every_space_leads_to_ras(tmp_path, space, signs):
    header = {"space": space, "space directions": np.diag([1.0, 2, 3]), "space origin": [4.0, 5, 6]}
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), header)
    assert np.allclose(
        read_nrrd_header(tmp_path / "a.nrrd").affine,
        np.diag([*signs, 1])
        @ [
            [1, 0, 0, 4],
            [0, 2, 0, 5],
            [0, 0, 3, 6],
            [0, 0, 0, 1],
        ],
    )


def test_three_windows_in_front_become_channels_behind(tmp_path):
    windows = np.random.default_rng(0).uniform(0, 1, (3, 8, 9, 10)).astype(np.float32)
    directions = np.vstack([np.full(3, np.nan), np.diag([-1.0, -1, 1])])
    header = {"space": "LPS", "space directions": directions, "kinds": ["vector", "domain", "domain", "domain"]}
    nrrd.write(str(tmp_path / "a.nrrd"), windows, header)
    assert np.array_equal(read_nrrd(tmp_path / "a.nrrd").array, np.moveaxis(windows, 0, -1))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, "where the axes lead"),
        ({"space": "scanner-xyz", "space directions": np.eye(3)}, "space 'scanner-xyz'"),
    ],
)
def test_a_volume_that_could_lie_anyhow_is_refused(tmp_path, header, reason):
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), header)
    with pytest.raises(UnusableVolume, match=reason):
        read_nrrd_header(tmp_path / "a.nrrd")


@pytest.mark.parametrize("name", ["raw", "gzip"])
@pytest.mark.parametrize("kept", [0.0, 0.05, 0.6])
def test_a_file_cut_off_is_refused_in_one_line(tmp_path, name, kept):
    path = write(tmp_path / f"{name}.nrrd", noise())
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(UnusableVolume) as refused:
        read_nrrd(path)
    assert "\n" not in str(refused.value)


def test_what_is_no_nrrd_is_refused(tmp_path):
    (tmp_path / "a.nrrd").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(UnusableVolume, match="web page"):
        read_nrrd_header(tmp_path / "a.nrrd")


SPACE = "space: LPS\nspace directions: (0,2,0.3) (1.5,0,0) (0,0.4,-3)\nspace origin: (1,2,3)\n"


def spell(path, array, fields, *, kind="short", data=None):
    """Write a file by the letter of the format; the first axis of `array` is the fastest."""
    sizes = " ".join(map(str, array.shape))
    first = f"NRRD0005\ntype: {kind}\ndimension: {array.ndim}\nsizes: {sizes}\nendian: little\nencoding: raw\n"
    path.write_bytes(f"{first}{fields}\n".encode() + (array.tobytes("F") if data is None else data))
    return path


def test_data_beside_the_header_are_read_or_missed(tmp_path):
    expected = read_nrrd(write(tmp_path / "a.nrrd", noise(), ROTATED))
    volume = read_nrrd(write(tmp_path / "b.nhdr", noise(), ROTATED))
    assert np.array_equal(volume.array, expected.array)
    assert np.array_equal(volume.affine, expected.affine)
    text = (tmp_path / "b.nhdr").read_bytes()
    (tmp_path / "b.nhdr").write_bytes(text.replace(b"data file: ", b"data file: ./"))
    assert np.array_equal(read_nrrd(tmp_path / "b.nhdr").array, expected.array)
    (tmp_path / "b.nhdr").write_bytes(text.replace(b"data file: ", b"data file: ./../"))
    with pytest.raises(UnusableVolume, match="its data is said to lie elsewhere"):
        read_nrrd(tmp_path / "b.nhdr")
    path = spell(tmp_path / "c.nhdr", noise(), f"{SPACE}data file: missing.raw\n", data=b"")
    with pytest.raises(UnusableVolume, match=r"^the file with its data is missing \(missing.raw\)$"):
        read_nrrd(path)


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
    array = np.abs(noise() // 8).astype(dtype)
    path = spell(tmp_path / "a.nrrd", array, SPACE, kind=kind)
    assert read_nrrd_header(path).dtype == array.dtype.name
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T
    assert np.array_equal(expected, array)
    assert np.array_equal(np.sort(read_nrrd(path).array, axis=None), np.sort(array, axis=None).astype(np.float32))


@pytest.mark.parametrize("kind", ["vector", "list"])
@pytest.mark.parametrize("place", [0, 3])
def test_three_components_become_channels_wherever_their_axis_is(tmp_path, kind, place):
    components = np.stack([noise() + channel for channel in range(3)], axis=-1)
    rows = ["(0,2,0.3)", "(1.5,0,0)", "(0,0.4,-3)"]
    kinds = ["domain"] * 3
    kinds.insert(place, kind)
    rows.insert(place, "none")
    fields = f"space: LPS\nkinds: {' '.join(kinds)}\nspace directions: {' '.join(rows)}\nspace origin: (1,2,3)\n"
    path = spell(tmp_path / "a.nrrd", np.moveaxis(components, -1, place), fields)
    volume = read_nrrd(path)
    assert read_nrrd_header(path).shape == (10, 11, 12, 3)
    for channel in range(3):
        single = read_nrrd(spell(tmp_path / "c.nrrd", components[..., channel], SPACE))
        assert np.array_equal(volume.array[..., channel], single.array)
        assert np.allclose(volume.affine, single.affine)


def of_four_axes(kind):
    return f"space: RAS\nkinds: {kind} domain domain domain\nspace directions: none (1,0,0) (0,1,0) (0,0,1)\n"


def test_a_volume_of_several_is_read_by_its_number(tmp_path):
    several = np.stack([noise() + number for number in range(5)])
    path = spell(tmp_path / "a.nrrd", several, of_four_axes("list"))
    assert read_nrrd_header(path).frames() == 5
    assert np.array_equal(read_nrrd(path, frame=3).array, several[3])
    with pytest.raises(UnusableVolume, match="4 axes"):
        read_nrrd(path)


@pytest.mark.parametrize(
    ("array", "fields", "reason"),
    [
        (np.stack([noise()] * 2), of_four_axes("vector"), "4 axes"),
        (np.stack([noise()] * 3), of_four_axes("RGB-color"), "RGB"),
        (np.stack([noise()] * 2), of_four_axes("complex"), "complex"),
        (noise()[:, :, :5], SPACE, "too small"),
        (noise(), "space: LPS\nspace directions: (1,0,0) (0,1,0) (0,2,0)\n", "singular"),
        (noise(), "space: LPST\nspace directions: (1,0,0,0) (0,1,0,0) (0,0,1,0)\n", "three axes of space"),
    ],
)
def test_what_is_not_one_volume_of_numbers_is_refused(tmp_path, array, fields, reason):
    with pytest.raises(UnusableVolume, match=reason):
        read_nrrd(spell(tmp_path / "a.nrrd", array, fields))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git-LFS"),
        (np.random.default_rng(0).bytes(5000), "unreadable"),
        (b"NRRD0005\n# nothing\n\n", "unreadable"),
        (None, "no such file"),
    ],
)
def test_other_content_and_none_are_refused_with_a_reason(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "a.nrrd").write_bytes(content)
    for read in (read_nrrd_header, read_nrrd):
        with pytest.raises(UnusableVolume, match=reason):
            read(tmp_path / "a.nrrd")


def test_without_the_extra_the_way_to_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nrrd", None)
    with pytest.raises(InputError, match=r"pip install 'voxelwave\[dicom\]'"):
        read_nrrd(tmp_path / "a.nrrd")


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("named", ["LIST", "LIST 2", "slice%02d.bin 3 12 1", "./slice%d.bin 12 3 -1"])
def test_slices_in_files_of_their_own_are_one_volume(tmp_path, encoding, named):
    array = noise()
    numbers = range(12, 2, -1) if named.endswith("-1") else range(3, 13)
    names = [f"slice{number}.bin" if "%d" in named else f"slice{number:02d}.bin" for number in numbers]
    compress = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding]
    for name, piece in zip(names, np.split(array.ravel("F"), 10), strict=True):
        (tmp_path / name).write_bytes(compress(piece.tobytes()))
    listed = "\n".join(["", *names]) if "LIST" in named else ""
    path = spell(tmp_path / "a.nhdr", array, f"{SPACE}data file: {named}{listed}", data=b"")
    path.write_bytes(path.read_bytes().replace(b"encoding: raw", f"encoding: {encoding}".encode()))
    whole = spell(tmp_path / "whole.nrrd", array, SPACE)
    assert np.array_equal(read_nrrd(path).array, read_nrrd(whole).array)
    assert data_files(path) == [tmp_path / name for name in names]
    (tmp_path / names[4]).unlink()
    with pytest.raises(UnusableVolume, match=f"is missing \\({names[4]}\\)"):
        read_nrrd(path)


@pytest.mark.parametrize("name", ["../out.bin", "/etc/hostname", "a/b.bin"])
def test_a_list_of_files_leads_nowhere_else(tmp_path, name):
    path = spell(tmp_path / "a.nhdr", noise(), f"{SPACE}data file: LIST\n{name}", data=b"")
    with pytest.raises(UnusableVolume, match="its data is said to lie elsewhere"):
        read_nrrd(path)


def test_no_more_is_decompressed_than_the_header_says(tmp_path):
    path = spell(tmp_path / "a.nrrd", noise(), SPACE, data=gzip.compress(noise().tobytes("F") + bytes(1 << 26)))
    path.write_bytes(path.read_bytes().replace(b"encoding: raw", b"encoding: gzip"))
    tracemalloc.start()
    array = read_nrrd(path).array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(array, read_nrrd(spell(tmp_path / "b.nrrd", noise(), SPACE)).array)
    assert peak < 1 << 23


def test_a_flipped_bit_of_compressed_values_is_damage(tmp_path):
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), {"space": "lps", "space directions": np.eye(3), "encoding": "gzip"})
    header, _, _ = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")
    content = bytearray(gzip.compress(noise().tobytes("F"), compresslevel=0))
    (tmp_path / "a.nrrd").write_bytes(header + b"\n\n" + content + b"behind it")
    assert np.array_equal(read_nrrd(tmp_path / "a.nrrd").array, noise()[::-1, ::-1])
    content[len(content) // 2] ^= 0x10
    (tmp_path / "a.nrrd").write_bytes(header + b"\n\n" + content)
    with pytest.raises(UnusableVolume, match="does not agree with its checksum"):
        read_nrrd(tmp_path / "a.nrrd")


def test_lines_to_skip_end_with_the_file(tmp_path):
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), {"space": "lps", "space directions": np.eye(3), "encoding": "raw"})
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content.replace(b"encoding: raw", b"encoding: raw\nline skip: 100000000000"))
    with pytest.raises(UnusableVolume):
        read_nrrd(tmp_path / "a.nrrd")


@pytest.mark.parametrize(("unit", "mm"), [("mm", 1.0), ("cm", 10.0), ("m", 1000.0), ("um", 0.001)])
def test_space_units_are_brought_to_mm(tmp_path, unit, mm):
    header = {"space": "ras", "space directions": np.eye(3), "space origin": [1.0, 2, 3], "space units": [unit] * 3}
    nrrd.write(str(tmp_path / "a.nrrd"), noise(), header)
    expected = np.diag([mm, mm, mm, 1])
    expected[:3, 3] = mm * np.array([1, 2, 3])
    assert np.allclose(read_nrrd_header(tmp_path / "a.nrrd").affine, expected)
