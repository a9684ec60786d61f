import nibabel as nib
import numpy as np
import pytest
import torch

from voxelwave.data.batches.labelled import Classes, LabelledVolume, LabelMap, check_same_grid, read_labels
from voxelwave.data.batches.views import RandomView
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.scaled import read_scaled
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.ops.seeding import torch_generator

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


def labelled(shape=(9, 10, 11)):
    """A volume whose every voxel tells its place, and labels with two classes of very different size."""
    volume = torch.arange(shape[0] * shape[1] * shape[2]).float().view(1, *shape) / 2000
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[1:8, 1:9] = 2
    labels[4, 5, 6] = labels[8, 0, 0] = 5
    return LabelledVolume(volume, labels)


def test_foreground_voxels_are_drawn_evenly_over_the_classes_and_within_them():
    of = labelled()
    drawn = [tuple(of.tissue(torch_generator(0, number))) for number in range(400)]
    assert of.present == [2, 5]
    rare = [place for place in drawn if of.labels[place] == 5]
    assert 150 < len(rare) < 250
    assert 60 < rare.count((4, 5, 6)) < 140
    assert {tuple(place) for place in rare} == {(4, 5, 6), (8, 0, 0)}
    common = [place for place in drawn if of.labels[place] == 2]
    assert len(rare) + len(common) == 400
    assert {place[0] for place in common} == set(range(1, 8))


def test_every_voxel_of_a_class_can_be_drawn():
    labels = torch.zeros(3, 4, 5, dtype=torch.uint8)
    labels[0, 1, 2:4] = labels[2, 3, 4] = 1
    of = LabelledVolume(torch.zeros(1, 3, 4, 5), labels)
    drawn = {tuple(of.tissue(torch_generator(number))) for number in range(60)}
    assert drawn == {tuple(place) for place in labels.nonzero().tolist()}


@pytest.mark.parametrize("size", [(4, 4, 4), (9, 4, 16), (16, 16, 16)])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_image_and_labels_are_cut_at_the_same_place(size, share):
    of = labelled()
    view = RandomView(crop_size=size, foreground_share=share)
    for number in range(20):
        volume, labels = of.crop(view, torch_generator(number))
        assert volume.shape == (1, *size)
        assert labels.shape == size
        assert labels.dtype == torch.uint8
        for place in (volume[0] > 0).nonzero()[::7].tolist():
            index = round(float(volume[0, *place]) * 2000)
            # Half precision does not tell the last neighbours apart.
            near = of.labels.flatten()[max(0, index - 1) : index + 2].tolist()
            assert int(labels[*place]) in near
        if share == 1:
            assert labels.any()
        if size[0] == 16:
            assert int((labels > 0).sum()) == int((of.labels > 0).sum())


def test_a_crop_follows_from_its_generator_alone():
    of, view = labelled(), RandomView(crop_size=(4, 4, 4), foreground_share=0.5)
    first, again = (of.crop(view, torch_generator(3)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert any(not torch.equal(of.crop(view, torch_generator(seed))[0], first[0]) for seed in range(4, 8))


def test_labels_without_foreground_are_cut_anywhere():
    of = LabelledVolume(torch.rand(1, 8, 8, 8), torch.zeros(8, 8, 8, dtype=torch.uint8))
    assert of.present == []
    places = {tuple(of.tissue(torch_generator(number))) for number in range(20)}
    assert len(places) > 10
    _, labels = of.crop(RandomView(crop_size=(4, 4, 4)), torch_generator(0))
    assert not labels.any()


def test_a_label_map_of_the_fixture_is_on_the_grid_of_its_image(heads):
    case = find_cases(heads, modality="ct")[0]
    labels = read_labels(case.label)
    assert isinstance(labels, LabelMap)
    for of in find_cases(heads, modality="ct"):  # of them one has its windows in the last axis
        check_same_grid(read_labels(of.label), of.image)
