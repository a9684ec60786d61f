import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.grids import oblique_affine
from voxelwave.data.label_maps import (
    Classes,
    LabelMap,
    as_labels,
    check_same_grid,
    in_smallest_type,
    onto_grid,
    read_labels,
)
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.reading.volume import Volume, resample
from voxelwave.data.scaled import read_scaled
from voxelwave.downstream.inference import labels_onto_grid
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation

FREESURFER = {"cortex": [3, "1000-2035", "42"], "ventricles": [4, 43]}


def write(path, array, affine=None):
    nib.save(nib.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine), path)
    return path


def test_values_and_ranges_become_their_class():
    labels = np.array([0, 3, 42, 4, 43, 1000, 1500, 2035], dtype=np.int32).reshape(2, 2, 2)
    assert Classes(FREESURFER).names == ("background", "cortex", "ventricles")
    assert Classes(FREESURFER).indices(labels).flatten().tolist() == [0, 1, 1, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("value", [1, 5, 999, 2036, 14175, 2**24, -7])
def test_a_value_of_no_class_is_named_or_background(value):
    labels = np.array([[[0, 3, value, value]]], dtype=np.int32)
    with pytest.raises(UnusableVolume, match=f"its values {value} are in no class: add them to task.classes, or set"):
        Classes(FREESURFER).indices(labels)
    assert Classes(FREESURFER, others="background").indices(labels).flatten().tolist() == [0, 1, 0, 0]


def test_of_many_values_some_are_named():
    with pytest.raises(UnusableVolume, match="its values 5, 6, 7, 8, 9, 10, 11, 12 and 5 more are"):
        Classes({"a": [1]}).indices(np.arange(5, 18, dtype=np.int32).reshape(1, 1, -1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "there are 1 to 254 classes"),
        ({"a": []}, "class 'a' needs a name and label values of its own"),
        ({" ": [1]}, "class ' ' needs a name and label values of its own"),
        ({"background": [1]}, "class 'background' needs"),
        ({"a": [0]}, "class 'a': a label is a whole number from 1 or a range .* got '0'"),
        ({"a": ["4-2"]}, "got '4-2'"),
        ({"a": ["x"]}, "got 'x'"),
        ({"a": ["2.5"]}, "got '2.5'"),
        ({"a": ["1-10"], "b": [20, "9-12"]}, "label value 9…12 of class 'b' is in class 'a' too"),
    ],
)
def test_classes_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Classes(values)


def test_labels_are_read_towards_ras_as_their_image_is(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3000, (8, 9, 10)).astype(np.int16)
    turned = np.array([[0, -2.0, 0, 5], [0, 0, 3.0, 6], [-1.0, 0, 0, 7], [0, 0, 0, 1]])
    read = read_labels(write(tmp_path / "labels.nii.gz", labels, turned))
    assert np.array_equal(read.array, labels[::-1, ::-1].transpose(1, 2, 0))
    # A voxel keeps its label and its place.
    place = np.linalg.inv(read.affine) @ turned @ [1, 2, 3, 1]
    assert read.array[tuple(place[:3].round().astype(int))] == labels[1, 2, 3]
    image = write(tmp_path / "image.nii.gz", np.zeros((8, 9, 10), np.float32), turned)
    check_same_grid(read, image)


def test_stored_labels_lie_on_their_stored_image(heads, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    name = "head_0000_T1"
    (scans / f"{name}.nii.gz").symlink_to(heads / "mri" / f"{name}.nii.gz")
    (scans / f"{name}_labels.nii.gz").symlink_to(heads / "labels" / f"{name}_labels.nii.gz")
    Preparer(tmp_path / "out", preparation(modality="mri", spacing="1.0", crop=True), workers=1)([str(scans)])
    (case,) = find_cases(tmp_path / "out")
    labels = read_labels(case.label)
    check_same_grid(labels, case.image)
    assert labels.array.shape == tuple(read_scaled(case.image, MRI()).volume.shape[1:])
    raw = read_labels(scans / f"{name}_labels.nii.gz")
    assert np.array_equal(labels.array, raw.array)
    with pytest.raises(UnusableVolume, match="it lies up to 1 mm from its image"):
        check_same_grid(LabelMap(raw.array, raw.affine + np.eye(4, k=3)), case.image)


def test_what_is_no_label_map_is_refused(tmp_path):
    for name, array, message in (
        ("soft", np.full((8, 8, 8), 0.5, np.float32), "are not whole numbers"),
        ("nan", np.full((8, 8, 8), np.nan, np.float32), "are not whole numbers"),
        ("four", np.zeros((8, 8, 8, 3), np.float32), r"has three axes, got shape \(8, 8, 8, 3\)"),
        ("large", np.full((8, 8, 8), 1e9, np.float32), "go beyond"),
    ):
        with pytest.raises(UnusableVolume, match=message):
            read_labels(write(tmp_path / f"{name}.nii.gz", array))
    (tmp_path / "text.nii.gz").write_text("hello")
    with pytest.raises(UnusableVolume):
        read_labels(tmp_path / "text.nii.gz")


def test_labels_that_were_saved_with_a_slope_are_whole_numbers_still(tmp_path):
    labels = np.random.default_rng(0).choice([0, 1, 2, 4], (9, 9, 9))
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(labels.astype(np.float64), np.eye(4), header), tmp_path / "a_seg.nii.gz")
    assert (nib.load(tmp_path / "a_seg.nii.gz").get_fdata() != labels).any()
    assert np.array_equal(read_labels(tmp_path / "a_seg.nii.gz").array, labels)
    for off in (0.0009, -0.0009):
        assert np.array_equal(as_labels(Volume((labels + off).astype(np.float32), np.eye(4))).array, labels)
    with pytest.raises(UnusableVolume, match="are not whole numbers"):
        as_labels(Volume((labels + 0.002).astype(np.float32), np.eye(4)))


def shifted(millimetres):
    affine = np.diag([2.0, 1, 1, 1])
    affine[1, 3] = millimetres
    return affine


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((8, 8, 9), shifted(0), "it has 8 × 8 × 9 voxels and its image 8 × 8 × 8"),
        ((8, 8, 8), shifted(2.5), "it lies up to 2.5 mm from its image in space"),
        ((8, 8, 8), np.eye(4), "it lies up to 7 mm from its image"),
        ((8, 8, 8), np.diag([-2.0, 1, 1, 1]), "it lies up to 14 mm from its image"),
        ((8, 8, 8), shifted(0.01), None),
    ],
)
def test_labels_in_another_space_than_their_image_are_refused(tmp_path, shape, affine, message):
    image = write(tmp_path / "image.nii.gz", np.zeros((8, 8, 8), np.float32), shifted(0))
    labels = read_labels(write(tmp_path / "labels.nii.gz", np.zeros(shape, np.uint8), affine))
    if message is None:
        check_same_grid(labels, image)
        return
    with pytest.raises(UnusableVolume, match=message) as caught:
        check_same_grid(labels, image)
    assert "\n" not in str(caught.value)


def test_a_label_map_of_the_fixture_is_on_the_grid_of_its_image(heads):
    case = find_cases(heads, modality="ct")[0]
    labels = read_labels(case.label)
    assert isinstance(labels, LabelMap)
    for of in find_cases(heads, modality="ct"):  # of them one has its windows in the last axis
        check_same_grid(read_labels(of.label), of.image)


@pytest.mark.parametrize("seed", range(4))
def test_nearest_labels_are_those_of_a_loop_over_voxels(seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(1, 200, (7, 6, 8)).astype(np.uint8)
    affine, to_affine, shape = oblique_affine(seed), oblique_affine(seed + 10, spacing_mm=(0.9, 0.9, 1.7)), (9, 8, 5)
    placed = onto_grid(labels, affine, shape=shape, to_affine=to_affine)
    assert placed.dtype == labels.dtype
    assert (placed == 0).any()
    assert (placed > 0).any()
    way = np.linalg.inv(affine) @ to_affine
    half = np.maximum(1, np.linalg.norm(way[:3, :3], axis=1)) / 2
    last = np.array(labels.shape) - 1
    for place in np.ndindex(shape):
        there = (way @ [*place, 1])[:3]
        inside = (there > -half).all() and (there < last + half).all()
        nearest = np.clip(np.floor(there + 0.5).astype(int), 0, last)
        assert placed[place] == (labels[tuple(nearest)] if inside else 0)


@settings(max_examples=60, deadline=None)
@given(
    sides=st.tuples(*[st.integers(2, 24)] * 3),
    ratios=st.tuples(*[st.sampled_from([0.5, 0.6, 0.75, 1, 1.2, 1.5, 2, 2.5, 3, 4])] * 3),
    oblique=st.booleans(),
)
def test_no_plane_of_labels_is_lost_between_a_grid_and_the_same_at_another_spacing(sides, ratios, oblique):
    affine = oblique_affine(3, spacing_mm=(1, 1, 1)) if oblique else np.eye(4)
    resampled = resample(Volume(np.ones(sides, np.float32), affine), ratios)
    there = onto_grid(np.ones(sides, np.uint8), affine, shape=resampled.array.shape, to_affine=resampled.affine)
    assert there.all()
    back = onto_grid(there, resampled.affine, shape=sides, to_affine=affine)
    assert back.all()
    logits = torch.tensor([0.0, 5.0]).reshape(2, 1, 1, 1).expand(2, *resampled.array.shape)
    assert labels_onto_grid(logits, resampled.affine, shape=sides, to_affine=affine).all()


@pytest.mark.parametrize(
    ("lowest", "highest", "dtype"), [(0, 255, "uint8"), (-1, 255, "int16"), (0, 256, "int16"), (0, 40000, "int32")]
)
def test_labels_take_the_smallest_type_that_holds_them(lowest, highest, dtype):
    labels = np.array([[[lowest, 3, highest]]])
    smallest = in_smallest_type(labels)
    assert smallest.dtype == dtype
    np.testing.assert_array_equal(smallest, labels)
    with pytest.raises(ValueError, match="whole numbers of 32 bits"):
        in_smallest_type(labels + 2**40)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0.5, "whole numbers"), (np.nan, "whole numbers"), (np.inf, "whole numbers"), (3e9, "32 bits")],
)
def test_values_that_are_no_labels_are_refused(value, reason):
    values = np.zeros((8, 8, 8), np.float32)
    values[3, 3, 3] = value
    with pytest.raises(UnusableVolume, match=reason):
        as_labels(Volume(values, np.eye(4)))
