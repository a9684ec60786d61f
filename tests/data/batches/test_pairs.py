"""Views of a head are cut as their affines say, and two of them share what they must."""

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from voxelwave.data.batches.alternating import Draw
from voxelwave.data.batches.pair_geometry import Geometry, draw_affines, rotation
from voxelwave.data.batches.pairs import HeadPairs, cut_labels, tissue_places
from voxelwave.data.label_maps import LabelMap
from voxelwave.errors import InputError
from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import draw_head

GEOMETRY = Geometry((16, 16, 16), spacing_mm=2.0)


@pytest.fixture(scope="module")
def head():
    labels = draw_head(numpy_generator("pairs"), size=32)
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -46.5
    return LabelMap(labels, affine)


def test_a_view_shows_the_nearest_label_of_each_of_its_voxels(head):
    for to_mm in draw_affines(tissue_places(head), GEOMETRY, numpy_generator("views")):
        way = np.linalg.inv(head.affine) @ to_mm
        expected = ndimage.affine_transform(
            head.array, way[:3, :3], way[:3, 3], output_shape=GEOMETRY.crop_size, order=0, mode="grid-constant"
        )
        assert (cut_labels(head, to_mm, GEOMETRY.crop_size).numpy() == expected).mean() > 0.999


def test_a_crop_on_the_grid_of_its_head_is_a_part_of_it(head):
    to_mm = head.affine.copy()
    to_mm[:3, 3] += 3.0 * np.array([2, 5, -3])
    cut = cut_labels(head, to_mm, (8, 8, 8)).numpy()
    assert np.array_equal(cut[:, :, 3:], head.array[2:10, 5:13, :5])
    assert not cut[:, :, :3].any()


@pytest.mark.parametrize("shared", [0.2, 0.8])
def test_two_views_differ_and_share_what_they_must(head, shared):
    geometry = Geometry((16, 16, 16), spacing_mm=2.0, shared=shared)
    centres, spacings = [], []
    for number in range(40):
        affines = list(draw_affines(tissue_places(head), geometry, numpy_generator("shared", number)))
        middle = np.array([7.5, 7.5, 7.5, 1])
        centres.append(np.abs((affines[0] - affines[1]) @ middle)[:3])
        spacings += [np.linalg.norm(affine[:3, :3], axis=0) for affine in affines]
    assert np.max(centres) <= (1 - shared) * 32 + 1e-6
    assert np.max(centres) > (1 - shared) * 16
    assert 2 * np.exp(-0.15) <= np.min(spacings) < 1.9
    assert 2.1 < np.max(spacings) <= 2 * np.exp(0.15)


def test_a_rotation_keeps_lengths_and_handedness():
    matrix = rotation(np.array([0.3, -0.2, 0.5]))
    assert np.allclose(matrix @ matrix.T, np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1)
    assert np.allclose(rotation(np.array([0, 0, np.pi / 2])) @ [1, 0, 0], [0, 1, 0])


@pytest.fixture
def pairs(head, tmp_path):
    path = tmp_path / "head_labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(head.array, head.affine), path)
    contrasts = {"mri": ["T1", "T2", "random"], "ct": ["CT"]}
    return HeadPairs([path], contrasts, GEOMETRY, highest=18, cached=1)


@pytest.mark.parametrize("kind", ["mri+mri", "mri+ct"])
def test_a_pair_depends_on_its_key_alone_and_has_two_contrasts(pairs, kind):
    for number in range(10):
        sample, again = (pairs[Draw(kind, 0, (3, "sample", number))] for _ in range(2))
        one, other = sample.views
        assert one.contrast != other.contrast
        assert one.contrast != "CT"
        assert (other.contrast == "CT") == (kind == "mri+ct")
        assert all(bool((a.labels == b.labels).all()) for a, b in zip(sample.views, again.views, strict=True))


def test_a_label_map_that_cannot_be_used_is_replaced_by_the_next(pairs, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"")
    (good,) = pairs._label_maps
    both = HeadPairs([tmp_path / "bad.nii.gz", good], {"mri": ["T1", "T2"]}, GEOMETRY, highest=18, cached=0)
    sample = both[Draw("mri+mri", 0, (0,))]
    assert (sample.file, sample.head) == (str(good), 1)
    assert sample.problems[0].startswith(f"{tmp_path / 'bad.nii.gz'}: ")


@pytest.mark.parametrize(
    ("factor", "added", "said"),
    [(1, 1000, "its values go from 1000 to .*, and tissues from 0 to 18"), (0, 0, "it shows nothing but air")],
)
def test_label_maps_that_are_none_of_tissues_are_named(tmp_path, head, factor, added, said):
    path = tmp_path / "labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(head.array.astype(np.int16) * factor + added, head.affine), path)
    pairs = HeadPairs([path], {"mri": ["T1", "T2"]}, GEOMETRY, highest=18, cached=0)
    with pytest.raises(InputError, match=rf"labels.nii.gz: {said}"):
        pairs[Draw("mri+mri", 0, (0,))]
