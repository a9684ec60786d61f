"""Every voxel of what is stored lies where it lay in the file, and holds the value that it had."""

from __future__ import annotations

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from voxelwave.data.foreground import foreground_box
from voxelwave.data.label_maps import as_labels, in_smallest_type, onto_grid
from voxelwave.data.listing.scans import Scan
from voxelwave.data.modalities.ct import CT
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.reading.volume import Volume, is_sheared, towards_ras
from voxelwave.data.recognition.recognise import NotAnImage
from voxelwave.data.store import StoredVolume, write_stored
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.prepare.preparation import (
    Preparation,
    content_hash,
    foreground_places,
    prepare,
)

READERS = {"ct": CT(), "mri": MRI()}
CENTRE_MM = np.array([31.0, -52.0, 74.0])

slow = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def turned(degrees):
    """A rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        cosine, sine = np.cos(angle), np.sin(angle)
        rotation = np.eye(3)
        others = [other for other in range(3) if other != axis]
        rotation[np.ix_(others, others)] = [[cosine, -sine], [sine, cosine]]
        matrix = rotation @ matrix
    return matrix


def grid(order=(0, 1, 2), signs=(1, 1, 1), degrees=(0, 0, 0), shear=0.0, spacing_mm=(1.0, 1.0, 1.0), extent_mm=56.0):
    """Shape and affine of a file whose middle lies at CENTRE_MM; `shear` shifts its slices along each other."""
    sheared = np.eye(3)
    sheared[1, 2] = shear
    axes = turned(degrees) @ sheared @ np.diag(spacing_mm) @ np.diag(signs)
    shape = np.ceil(extent_mm / np.array(spacing_mm)).astype(int)
    affine = np.eye(4)
    affine[:3, :3], shape = axes[:, list(order)], shape[list(order)]
    affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ (shape - 1) / 2
    return tuple(shape.tolist()), affine


grids = st.builds(
    grid,
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([1, -1])] * 3),
    degrees=st.tuples(*[st.floats(-25, 25)] * 3) | st.just((0, 0, 0)),
    shear=st.sampled_from([0.0, 0.0, 0.3, -0.35]),
    spacing_mm=st.tuples(*[st.sampled_from([1.0, 1.3, 2.0, 3.0])] * 3),
)
spacings = st.sampled_from([None, 1.0, 2.0, (1.0, 2.0, 1.5)])


def positions(shape, affine):
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def stored(folder, array, affine, how, name="scan"):
    """Save as a file, prepare, store, and open."""
    path = folder / f"{name}.nii"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    facts = {}
    prepared = prepare(Scan(path, folder), how, READERS, facts)
    write_stored(folder / f"{name}.vxw", prepared.volume, prepared.info, prepared.foreground)
    return StoredVolume(folder / f"{name}.vxw"), facts


# Where


def ramp(places):
    """Hounsfield units that rise along x, y and z at rates of their own: trilinear interpolation keeps them."""
    return (places - CENTRE_MM) @ (11.0, 5.0, -17.0) + 300


@slow
@given(source=grids, spacing_mm=spacings, crop=st.booleans())
@example(source=grid(shear=0.35, spacing_mm=(1.0, 1.0, 3.0)), spacing_mm=None, crop=False)
@example(source=grid((2, 0, 1), (-1, 1, -1), (10, -20, 5), 0.3, (1.0, 2.0, 3.0)), spacing_mm=1.0, crop=True)
def test_every_voxel_keeps_its_place_in_mm(tmp_path, source, spacing_mm, crop):
    shape, affine = source
    scan = ramp(positions(shape, affine)).astype(np.float32)
    volume, facts = stored(tmp_path, scan, affine, Preparation("ct", spacing_mm, crop))
    places = positions(volume.grid, volume.affine)
    inside = places @ np.linalg.inv(affine)[:3, :3].T + np.linalg.inv(affine)[:3, 3]
    inside = ((inside > -1e-6) & (inside < np.array(shape) - 1 + 1e-6)).all(axis=-1)
    expected = np.maximum(ramp(places), -1024)
    assert inside.mean() > 0.4
    # Rounded to whole units; interpolated across the kink at -1024 they may lie above it.
    error = np.abs(volume.read() - expected)[inside & (expected > -900)]
    assert error.max() < 0.52
    assert not is_sheared(volume.affine)
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    wanted = nibabel.affines.voxel_sizes(nibabel.as_closest_canonical(nibabel.load(tmp_path / "scan.nii")).affine)
    assert facts["stored_spacing_mm"] == pytest.approx(np.broadcast_to(wanted if spacing_mm is None else spacing_mm, 3))
    assert facts["stored_shape"] == volume.shape


CORNERS_MM = np.array([[-14.0, -13.0, -15.0], [-14.0, -13.0, 3.0], [4.0, -13.0, -15.0]]) + CENTRE_MM
DEPTH_MM = 20.0
BALL_MM, RADIUS_MM = CENTRE_MM + np.array([9.0, 8.0, 11.0]), 8.0


def wedge(places):
    """How deep a place lies in a prism with the triangle CORNERS_MM at its back."""
    x, y, z = np.moveaxis(places - CORNERS_MM[0], -1, 0)
    return np.min([x, z, (18 - x - z) / np.sqrt(2), y, DEPTH_MM - y], axis=0)


def phantom(places):
    """A ball and a wedge that no rotation or flip brings to itself; 1 within, 0 outside, 2 mm of edge."""
    depth = np.maximum(RADIUS_MM - np.linalg.norm(places - BALL_MM, axis=-1), wedge(places))
    return np.clip(depth / 2 + 0.5, 0, 1)


VOLUMES = 4 / 3 * np.pi * RADIUS_MM**3, 18**2 / 2 * DEPTH_MM
WEDGE_MM = CORNERS_MM.mean(axis=0) + np.array([0, DEPTH_MM / 2, 0])
CENTRE_OF_PHANTOM_MM = (VOLUMES[0] * BALL_MM + VOLUMES[1] * WEDGE_MM) / sum(VOLUMES)


def centre_of(weights, affine):
    return (weights[..., None] * positions(weights.shape, affine)).sum((0, 1, 2)) / weights.sum()


def test_the_phantom_has_the_centre_that_it_is_meant_to_have():
    shape, affine = grid(spacing_mm=(0.5, 0.5, 0.5))
    assert np.allclose(centre_of(phantom(positions(shape, affine)), affine), CENTRE_OF_PHANTOM_MM, atol=0.1)


def placed_on(label, shape, affine):
    """A label map as it is stored beside an image of a grid."""
    labels = as_labels(label)
    return in_smallest_type(onto_grid(labels.array, labels.affine, shape=shape, to_affine=affine))


@slow
@given(source=grids, label_order=st.permutations(range(3)), spacing_mm=spacings, crop=st.booleans())
@example(grid((1, 2, 0), (1, -1, -1), shear=0.35, spacing_mm=(1.0, 1.3, 3.0)), [0, 2, 1], 1.0, True)
def test_image_and_label_map_stay_where_they_are(tmp_path, source, label_order, spacing_mm, crop):
    shape, affine = source
    inside = phantom(positions(shape, affine))
    volume, _ = stored(tmp_path, (20 + 700 * inside).astype(np.float32), affine, Preparation("mri", spacing_mm, crop))
    values = volume.read().astype(np.float64)
    values = (values - values.min()) / (values.max() - values.min())
    centre_mm = centre_of(values, volume.affine)
    assert np.allclose(centre_mm, centre_of(inside, affine), atol=0.5)
    assert np.allclose(centre_mm, CENTRE_OF_PHANTOM_MM, atol=0.9)
    # The label map is stored in another order of axes.
    labels = nibabel.Nifti1Image((inside > 0.5).astype(np.uint8), affine)
    order = nibabel.orientations.io_orientation(affine)[label_order]
    nibabel.save(labels.as_reoriented(order), tmp_path / "label.nii")
    label = placed_on(read_volume(tmp_path / "label.nii"), volume.grid, volume.affine)
    dice = 2 * (label & (values > 0.5)).sum() / (label.sum() + (values > 0.5).sum())
    assert label.shape == volume.grid
    assert dice > 0.75


@slow
@given(source=grids, image=grids, largest=st.sampled_from([200, 30000, 100000]))
def test_a_label_of_a_grid_is_that_of_the_nearest_voxel(source, image, largest):
    shape, affine = source
    values = np.random.default_rng(0).integers(0, largest, shape).astype(np.float32)
    label = towards_ras(values, affine)
    placed = placed_on(label, image[0], image[1])
    back = np.linalg.inv(affine)
    voxels = positions(*image) @ back[:3, :3].T + back[:3, 3]
    nearest = np.rint(voxels).astype(int)
    # A grid reaches half a voxel beyond its outermost centres, half one of the image where these are larger.
    half = np.maximum(1, np.linalg.norm(back[:3, :3] @ image[1][:3, :3], axis=1)) / 2
    beyond = np.maximum(-voxels, voxels - (np.array(shape) - 1)) - half
    inside = (beyond <= 0).all(axis=-1)
    halves = np.abs(voxels - np.floor(voxels) - 0.5)
    clear = (halves > 1e-3).all(axis=-1) & (np.abs(beyond) > 2e-3).all(axis=-1)
    expected = np.where(inside, values[tuple(np.moveaxis(np.clip(nearest, 0, np.array(shape) - 1), -1, 0))], 0)
    assert np.array_equal(placed[clear], expected[clear])
    assert placed.dtype == {200: "uint8", 30000: "int16", 100000: "int32"}[largest]


# What


def hounsfield(seed=0, shape=(12, 13, 14)):
    return np.random.default_rng(seed).integers(-1024, 3000, shape).astype(np.int16)


NATIVE = {"spacing_mm": None, "crop": False}


def test_windows_made_of_the_store_follow_the_formula_at_and_around_their_edges(tmp_path):
    scan = hounsfield()
    windows = CT().windows_hu
    edges = [level + side * width / 2 + off for level, width in windows for side in (-1, 0, 1) for off in (-1, 0, 1)]
    scan.reshape(-1)[: len(edges)] = edges
    volume, _ = stored(tmp_path, scan, np.eye(4), Preparation("ct", **NATIVE))
    assert volume.dtype == "int16"
    assert np.array_equal(volume.read(), scan)
    shown = CT().scale(volume.read(), volume.info.bounds)
    for channel, (level, width) in zip(shown, windows, strict=True):
        formula = np.clip((scan.astype(np.float64) - (level - width / 2)) / width, 0, 1)
        assert np.allclose(channel, formula, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("hu_offset", "scan"),
    [
        (0.0, np.array([-3024, -1025, -1024, -1023, 0, 3071])),
        (-1024.0, np.array([-2000, -1, 0, 1, 1024, 4095])),
        (-32768.0, np.array([29744, 31743, 31744, 31745, 32768, 35839])),
    ],
)
def test_an_offset_is_undone_before_padding_is_raised_to_air(tmp_path, hu_offset, scan):
    values = np.random.default_rng(0).choice(scan, (12, 13, 14)) + np.arange(14) / 100  # not whole: no label map
    volume, facts = stored(
        tmp_path, values.astype(np.float32), np.eye(4), Preparation("ct", hu_offset=hu_offset, **NATIVE)
    )
    expected = np.maximum(np.rint(values + hu_offset), -1024)
    assert np.abs(volume.read() - expected).max() <= (0 if hu_offset > -9999 else 1)
    assert facts["minimum"] == -1024


@pytest.mark.parametrize("modality", ["mri", "ct"])
def test_what_is_not_finite_becomes_the_nearest_end_and_is_counted(tmp_path, modality):
    scan = hounsfield().astype(np.float32)
    low, high = scan.min(), scan.max()
    places = np.random.default_rng(1).permutation(scan.size)[:30].reshape(3, 10)
    for value, where in zip((np.nan, np.inf, -np.inf), places, strict=True):
        scan.reshape(-1)[where] = value
    expected = np.nan_to_num(scan, nan=low, posinf=high, neginf=low)
    volume, facts = stored(tmp_path, scan, np.eye(4), Preparation(modality, **NATIVE))
    assert facts["nonfinite"] == 30
    assert np.array_equal(volume.read(), expected)


@pytest.mark.parametrize("low", [-32768, 0])
def test_whole_numbers_of_mri_are_kept_as_they_are(tmp_path, low):
    scan = np.random.default_rng(0).integers(low, 32768, (12, 13, 14)).astype(np.int16)
    scan[0, 0, :2] = low, 32767
    volume, _ = stored(tmp_path, scan, np.eye(4), Preparation("mri", **NATIVE))
    assert volume.dtype == "int16"
    assert np.array_equal(volume.read(), scan)
    assert np.array_equal(MRI().scale(volume.read(), volume.info.bounds), MRI()(scan))


@pytest.mark.parametrize("scale", [1e-4, 0.37, 1e6])
def test_other_numbers_of_mri_are_kept_to_a_quarter_of_a_thousandth(tmp_path, scale):
    scan = (np.random.default_rng(0).gamma(2, scale, (12, 13, 14))).astype(np.float32)
    volume, _ = stored(tmp_path, scan, np.eye(4), Preparation("mri", **NATIVE))
    assert volume.dtype == "float16"
    assert np.abs(MRI().scale(volume.read(), volume.info.bounds) - MRI()(scan)).max() < 2.5e-4


def test_a_crop_is_shown_as_it_is_in_the_whole_volume(tmp_path):
    shape, affine = grid(spacing_mm=(2.0, 2.0, 2.0))
    noise = np.random.default_rng(0).integers(0, 40, shape)
    scan = (900 * phantom(positions(shape, affine)) + noise).astype(np.int16)
    scan[:, :9] //= 400
    volume, facts = stored(tmp_path, scan, affine, Preparation("mri", None))
    assert volume.grid != shape
    corner = np.rint(np.linalg.inv(affine) @ volume.affine[:, 3])[:3].astype(int)
    box = tuple(slice(first, first + side) for first, side in zip(corner, volume.grid, strict=True))
    assert np.array_equal(MRI().scale(volume.read(), volume.info.bounds), MRI()(scan)[(slice(None), *box)])
    assert (facts["minimum"], facts["maximum"]) == (scan[box].min(), scan[box].max())


@pytest.mark.parametrize("name", ["x_seg", "x_values"])
def test_a_label_map_is_recognised_whatever_is_said_of_its_modality(tmp_path, name):
    labels = np.random.default_rng(0).integers(0, 4, (12, 13, 14)).astype(np.uint8)
    with pytest.raises(NotAnImage, match="a label map by its"):
        stored(tmp_path, labels, np.eye(4), Preparation("mri"), name)


# The foreground


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_the_box_holds_all_of_the_foreground_and_little_else(data):
    shape = data.draw(st.tuples(*[st.integers(20, 70)] * 3))
    spacing_mm = data.draw(st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3))
    size = [data.draw(st.integers(max(4, side // 8), side)) for side in shape]
    start = [data.draw(st.integers(0, side - part)) for side, part in zip(shape, size, strict=True)]
    tissue = tuple(slice(first, first + part) for first, part in zip(start, size, strict=True))
    shown = np.zeros(shape, bool)
    shown[tissue] = True
    volume = Volume(np.zeros(shape, np.float32), np.diag([*spacing_mm, 1.0]))
    box = foreground_box(shown[::2, ::2, ::2], volume)
    for side, part, whole, step in zip(box, tissue, shape, spacing_mm, strict=True):
        margin = 5 / step
        assert side.start <= max(0, part.start - margin)
        assert side.stop >= min(whole, part.stop + margin)
        assert side.start >= part.start - margin - 4
        assert side.stop <= part.stop + margin + 4


def test_without_foreground_nothing_is_cut():
    volume = Volume(np.zeros((20, 21, 22), np.float32), np.eye(4))
    box = foreground_box(np.zeros((10, 11, 11), bool), volume)
    assert volume.array[box].shape == (20, 21, 22)


@pytest.mark.parametrize("number", [0, 5, 1024, 3000])
def test_places_to_centre_crops_on_are_of_the_foreground(number):
    shown = np.zeros((20, 15, 16), bool)
    shown.reshape(-1)[np.random.default_rng(0).permutation(shown.size)[:number]] = True
    places = foreground_places(shown, "key")
    assert places.shape == (min(number, 1024), 3)
    assert shown[tuple(places.T)].all()
    assert len(np.unique(places, axis=0)) == len(places)
    assert np.array_equal(places, foreground_places(shown, "key"))
    assert number <= 1024 or not np.array_equal(places, foreground_places(shown, "other"))


# Content


TURNS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -7, 20)], ids=["straight", "oblique"])
def test_content_is_the_same_in_all_48_orders_of_storage(degrees):
    shape, affine = grid(degrees=degrees, spacing_mm=(2.0, 3.0, 4.0))
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine)
    hashes = set()
    for order, signs in TURNS:
        moved = image.as_reoriented(np.array(list(zip(order, signs, strict=True))))
        hashes.add(content_hash(towards_ras(np.asarray(moved.dataobj), moved.affine)))
    assert len(hashes) == 1


def test_content_is_the_same_when_a_tool_rounds_the_affine():
    array = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    error = np.random.default_rng(1).normal(0, 1e-7, (4, 4))
    assert len({content_hash(Volume(array, np.eye(4) + sign * error)) for sign in (-1, 0, 1)}) == 1


def test_content_differs_with_a_value_a_flip_or_the_spacing():
    array = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    other = array.copy()
    other[4, 4, 4] += 1
    volumes = [
        Volume(array, np.eye(4)),
        Volume(other, np.eye(4)),
        Volume(array[::-1], np.eye(4)),
        Volume(array.transpose(1, 0, 2), np.eye(4)),
        Volume(array, np.diag([1.0, 1.0, 2.0, 1.0])),
    ]
    assert len({content_hash(volume) for volume in volumes}) == len(volumes)
    moved = np.eye(4)
    moved[:3, 3] = 5
    assert content_hash(Volume(array, moved)) == content_hash(volumes[0])


def test_a_spacing_that_would_fill_the_memory_is_refused_before_a_value_is_read(tmp_path):
    path = tmp_path / "scan_T1.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20), np.uint8), np.diag([90.0, 90, 90, 1])), path)
    with pytest.raises(UnusableVolume, match=r"5.8e\+09 voxels at the spacing asked for"):
        prepare(Scan(path, tmp_path), Preparation(spacing_mm=1.0), READERS, {})
    with pytest.raises(UnusableVolume, match="every value is 0"):
        prepare(Scan(path, tmp_path), Preparation(spacing_mm=None), READERS, {})


def test_a_side_that_the_store_cannot_name_the_places_of_is_refused(tmp_path):
    values = np.random.default_rng(0).uniform(0, 900, (33000, 8, 8)).astype(np.float32)
    nibabel.save(nibabel.Nifti2Image(values, np.diag([0.01, 1, 1, 1])), tmp_path / "a_T1.nii")
    scan = Scan(tmp_path / "a_T1.nii", tmp_path)
    how = Preparation(spacing_mm=None)
    with pytest.raises(UnusableVolume, match="33000 voxels along one axis at the spacing asked for"):
        prepare(scan, how, how.readers(), {})
