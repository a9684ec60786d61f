import shutil

import nibabel
import numpy as np
import pytest

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.data.foreground import cropped_at
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation

SETTINGS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}


def pyramid(**preprocessing):
    return FeaturePyramid(WaveFormer3D((1, 3), **SETTINGS), description={"preprocessing": preprocessing})


def test_a_scan_is_read_as_the_description_says(heads):
    scan = heads / "mri" / "head_0000_T1.nii.gz"
    assert ScanReader(pyramid())(scan, "mri").volume.shape == (1, 32, 32, 32)
    assert ScanReader(pyramid(spacing_mm=[2.0, 2.0, 1.0]))(scan, "mri").volume.shape == (1, 16, 16, 32)
    wide = {"mri": {"channels": 1, "range": [0, 1], "percentiles": [20, 80]}}
    share = [float((ScanReader(pyramid(modalities=of))(scan, "mri").volume == 1).float().mean()) for of in ({}, wide)]
    assert share[1] > 5 * share[0]


def test_a_stored_scan_is_brought_to_the_spacing_of_the_backbone_as_its_file_is(heads, tmp_path):
    (tmp_path / "scan").mkdir()
    scan = tmp_path / "scan" / "head_T1.nii.gz"
    scan.symlink_to(heads / "mri" / "head_0000_T1.nii.gz")
    Preparer(tmp_path / "set", preparation(spacing="native", crop=False), workers=1)([str(scan.parent)])
    reader = ScanReader(pyramid(spacing_mm=2.0))
    of_file, of_store = (reader(path, "mri") for path in (scan, next((tmp_path / "set").rglob("*.vxw"))))
    assert of_store.volume.shape == of_file.volume.shape == (1, 16, 16, 16)
    np.testing.assert_allclose(of_store.affine, of_file.affine)
    # The bounds of intensities are those of all voxels.
    assert float((of_store.volume - of_file.volume).abs().mean()) < 0.02


@pytest.mark.parametrize("spacing_mm", [2.0, 3.0])
def test_a_model_that_saw_scans_without_air_sees_those_that_are_not_prepared_so_too(heads, tmp_path, spacing_mm):
    image = nibabel.load(heads / "mri" / "head_0000_T1.nii.gz")
    padded = np.pad(np.asarray(image.dataobj), [(9, 20), (0, 14), (17, 3)])
    affine = image.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [9, 0, 17]
    (tmp_path / "scans").mkdir()
    scan = tmp_path / "scans" / "head_T1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(padded, affine), scan)
    for name, crop in (("tight", True), ("wide", False)):
        Preparer(tmp_path / name, preparation(spacing="2.0", crop=crop), workers=1)([str(scan.parent)])
    tight, wide = (next((tmp_path / name).rglob("*.vxw")) for name in ("tight", "wide"))
    assert cropped_at([scan, wide]) is None
    assert cropped_at([scan, tight, wide]) == (2, 2, 2)
    reader = ScanReader(pyramid(spacing_mm=spacing_mm, cropped_at_mm=[2.0, 2.0, 2.0]))
    expected = reader(tight, "mri")
    assert expected.volume.shape != ScanReader(pyramid(spacing_mm=spacing_mm))(scan, "mri").volume.shape
    for path in (scan, wide):
        read = reader(path, "mri")
        np.testing.assert_allclose(read.affine, expected.affine)
        assert read.volume.shape == expected.volume.shape
        assert float((read.volume - expected.volume).abs().max()) < 1e-3
        assert read.source.grid == padded.shape


def test_what_a_backbone_cannot_take_is_one_clear_line(heads, tmp_path):
    mri = FeaturePyramid(WaveFormer3D((1,), **SETTINGS))
    with pytest.raises(ValueError, match="takes volumes of 1 channels, and ct has 3: leave such scans out") as caught:
        ScanReader(mri).modality("ct")
    assert "\n" not in str(caught.value)
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "head_T1.nii.gz").symlink_to(heads / "mri" / "head_0000_T1.nii.gz")
    Preparer(tmp_path / "set", preparation(spacing="native"), workers=1)([str(tmp_path / "scan")])
    stored = next((tmp_path / "set").rglob("*.vxw"))
    ScanReader(pyramid())(stored, "mri")
    with pytest.raises(UnusableVolume, match="prepared with"):
        ScanReader(pyramid(modalities={"mri": {"percentiles": [1, 99]}}))(stored, "mri")
    with pytest.raises(UnusableVolume, match="stored as mri"):
        ScanReader(pyramid())(stored, "ct")


def test_what_somebody_said_is_an_image_is_not_refused_for_its_name(heads, tmp_path):
    scan = tmp_path / "tumor_001.nii.gz"
    scan.symlink_to(heads / "mri" / "head_0000_T1.nii.gz")
    assert ScanReader(pyramid())(scan, "mri").volume.shape == (1, 32, 32, 32)
    with pytest.raises(UnusableVolume, match="a label map by its name"):
        ScanReader(pyramid())(scan)
    labels = tmp_path / "scan.nii.gz"
    labels.symlink_to(heads / "labels" / "head_0000_T1_labels.nii.gz")
    with pytest.raises(UnusableVolume, match="a label map by its content"):
        ScanReader(pyramid())(labels, "mri")


def test_the_modality_is_told_where_it_is_not_given(heads, tmp_path):
    (tmp_path / "T1" / "anna").mkdir(parents=True)
    named, told_by_values = tmp_path / "T1" / "anna" / "1.nii.gz", tmp_path / "1.nii.gz"
    shutil.copy(heads / "mri" / "head_0000_T1.nii.gz", named)
    shutil.copy(heads / "ct" / "head_0000_hu.nii.gz", told_by_values)
    reader = ScanReader(pyramid())
    assert reader(named, root=tmp_path).modality == "mri"
    assert reader(told_by_values).modality == "ct"
    assert reader(named, "mri").modality == "mri"
    with pytest.raises(UnusableVolume, match="modality unknown: neither name, folder nor values tell it"):
        reader(named)  # the nearest folder does not tell it
    with pytest.raises(UnusableVolume, match="a label map by its content"):
        reader(heads / "labels" / "head_0000_T1_labels.nii.gz", "mri")


def test_what_is_read_says_where_its_file_has_its_voxels(heads, tmp_path):
    image = nibabel.load(heads / "mri" / "head_0000_T1.nii.gz").slicer[:30, :28]
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    (tmp_path / "scan").mkdir()
    nibabel.save(turned, tmp_path / "scan" / "head_T1.nii.gz")
    scan = ScanReader(pyramid(spacing_mm=2.0))(tmp_path / "scan" / "head_T1.nii.gz")
    assert max(scan.volume.shape) <= 16 < min(turned.shape)
    assert scan.source.grid == turned.shape
    np.testing.assert_allclose(scan.source.affine, turned.affine)
    Preparer(tmp_path / "set", preparation(spacing="2.0"), workers=1)([str(tmp_path / "scan")])
    stored = ScanReader(pyramid(spacing_mm=2.0))(next((tmp_path / "set").rglob("*.vxw")))
    assert (stored.modality, stored.source.grid) == ("mri", image.shape)
    np.testing.assert_allclose(stored.source.affine, image.affine)


def test_a_model_of_a_task_takes_what_it_was_trained_on_and_a_backbone_what_has_as_many_channels(heads):
    scan = heads / "ct" / "head_0000_hu.nii.gz"
    modalities = {"mri": {"channels": 1, "range": [0, 1]}}
    backbone = pyramid(modalities=modalities)
    assert ScanReader(backbone)(scan, "ct").modality == "ct"
    backbone.description["task"] = {"name": "classification"}
    for given in ("ct", ""):
        with pytest.raises(UnusableVolume, match="ct, and the model takes mri"):
            ScanReader(backbone)(scan, given)
    with pytest.raises(UnusableVolume, match="ct, and the model takes mri"):
        ScanReader(FeaturePyramid(WaveFormer3D((1,), **SETTINGS)))(scan, "ct")


def test_a_stored_scan_that_lost_hardly_any_air_does_not_lose_it_twice(tmp_path):
    hounsfield = np.full((40, 40, 40), -1000, np.int16)
    inside = np.random.default_rng(0).integers(20, 60, (27, 27, 27))
    hounsfield[7:34, 7:34, 7:34] = inside
    hounsfield[18:22, 18:22, 18:22] = 900
    (tmp_path / "scans").mkdir()
    scan = tmp_path / "scans" / "head_CT.nii.gz"
    nibabel.save(nibabel.Nifti1Image(hounsfield, np.eye(4)), scan)
    Preparer(tmp_path / "set", preparation(spacing="native"), workers=1)([str(scan.parent)])
    stored = next((tmp_path / "set").rglob("*.vxw"))
    assert cropped_at([stored]) == (1, 1, 1)
    reader = ScanReader(pyramid(cropped_at_mm="native"))
    of_file, of_store = reader(scan, "ct"), reader(stored, "ct")
    assert 36 < min(of_file.volume.shape[1:]) <= max(of_file.volume.shape[1:]) < 40
    assert of_store.volume.shape == of_file.volume.shape
    np.testing.assert_allclose(of_store.affine, of_file.affine)
    np.testing.assert_allclose(of_store.volume, of_file.volume, atol=1e-3)
