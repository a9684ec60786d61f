"""NRRD files lie in space as ITK and nibabel say."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from voxelwave.data.modalities import UnusableVolume
from voxelwave.data.nrrd import read_nrrd, read_nrrd_header

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
