"""Scans are cut where their affines say, and two that do not show the same are told."""

import nibabel
import numpy as np
import pytest
import torch

from voxelwave.data.batches.cuboids import InMemory
from voxelwave.data.batches.pair_geometry import rotation
from voxelwave.data.batches.placed_scans import (
    PlacedScan,
    Shown,
    cut_scan,
    foreground,
    lattice,
    open_scan,
    outline,
    shown_by_both,
)
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.store import StoredInfo, write_stored
from voxelwave.errors import UnusableVolume

AXES = {"upright": np.eye(3), "turned": rotation(np.array([0.3, -0.4, 0.2])), "swapped": np.eye(3)[[2, 0, 1]]}
SHEARED = np.array([[1, 0, 0.2], [0, 1, 0], [0, 0, 1]])
NONE_MM = np.zeros(3)


def places_mm(affine, grid):
    voxels = np.stack(np.meshgrid(*(np.arange(side) for side in grid), indexing="ij"), -1)
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def centred(linear, grid, middle=(3.0, -7.0, 11.0)):
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array(middle) - linear @ ((np.array(grid) - 1) / 2)
    return affine


def ramp(places):
    return 2 + places @ np.array([0.02, -0.03, 0.01])


def blob(places):
    return np.exp(-((places - np.array([5.0, -3.0, 9.0])) ** 2).sum(-1) / (2 * 12.0**2))


def scan_of(function, affine, grid):
    values = torch.from_numpy(function(places_mm(affine, grid))).float()[None]
    return PlacedScan(InMemory(values), Shown(lattice(grid), affine))


@pytest.mark.parametrize("axes", [*AXES, "sheared"])
@pytest.mark.parametrize("spacing_mm", [0.7, 2.0, 5.0])
def test_a_view_shows_what_is_at_the_places_that_its_affine_tells(axes, spacing_mm):
    linear = AXES.get(axes, SHEARED) @ np.diag([1.1, 0.9, 1.6])
    grid = (60, 66, 44)
    affine = centred(linear, grid)
    to_mm = centred(rotation(np.array([-0.1, 0.15, 0.1])) * spacing_mm, (12, 8, 10), middle=(4.0, -6.0, 10.0))
    places = places_mm(to_mm, (12, 8, 10))
    inner = places @ np.linalg.inv(affine)[:3, :3].T + np.linalg.inv(affine)[:3, 3]
    # Means of voxels of the scan end half a mean before its border.
    inside = ((inner > 5) & (inner < np.array(grid) - 6)).all(-1)
    assert inside.mean() > 0.3
    view = cut_scan(scan_of(ramp, affine, grid), to_mm, (12, 8, 10))[0].numpy()
    np.testing.assert_allclose(view[inside], ramp(places)[inside], atol=1e-4)
    view = cut_scan(scan_of(blob, affine, grid), to_mm, (12, 8, 10))[0].numpy()
    np.testing.assert_allclose(view[inside], blob(places)[inside], atol=0.01 + 0.01 * spacing_mm)


def test_beyond_a_scan_there_is_air():
    affine = centred(np.eye(3), (20, 20, 20))
    scan = scan_of(lambda places: np.ones(places.shape[:-1]), affine, (20, 20, 20))
    to_mm = affine.copy()
    to_mm[:3, 3] += [-4, 12, 0]
    view = cut_scan(scan, to_mm, (16, 16, 16))[0]
    assert (view[4:, :8] == 1).all()
    assert not view[:4].any()
    assert not view[:, 8:].any()
    to_mm[:3, 3] += 500
    assert not cut_scan(scan, to_mm, (16, 16, 16)).any()


def test_a_view_on_the_grid_of_a_scan_is_a_part_of_it():
    affine = centred(np.diag([1.0, 2.0, 3.0]), (20, 18, 16))
    values = torch.rand(3, 20, 18, 16)
    to_mm = affine.copy()
    to_mm[:3, 3] += np.array([1.0, 2.0, 3.0]) * [4, 5, 6]
    view = cut_scan(PlacedScan(InMemory(values), Shown(lattice((20, 18, 16)), affine)), to_mm, (8, 8, 8))
    torch.testing.assert_close(view, values[:, 4:12, 5:13, 6:14], atol=1e-5, rtol=0)


def test_a_stored_scan_is_cut_as_one_that_was_read(tmp_path):
    grid, affine = (40, 36, 32), centred(AXES["turned"] @ np.diag([1.0, 1.2, 1.5]), (40, 36, 32))
    array = np.rint(1000 * blob(places_mm(affine, grid))).astype(np.int16)
    path = tmp_path / "scan_T1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    raw = open_scan(VolumeFile(path, "mri"), MRI())
    stored_path, turned = tmp_path / "scan_T1.vxw", nibabel.as_closest_canonical(nibabel.load(path))
    array = np.ascontiguousarray(np.asarray(turned.dataobj))
    info = StoredInfo(modality="mri", affine=turned.affine.tolist(), bounds=MRI().bounds(array), settings=MRI().baked())
    write_stored(stored_path, array, info, np.argwhere(array > 100).astype(np.int16)[::7])
    stored = open_scan(VolumeFile(stored_path, "mri"), MRI())
    to_mm = centred(rotation(np.array([0.2, 0.1, 0])) * 1.3, (16, 16, 16))
    torch.testing.assert_close(
        cut_scan(stored, to_mm, (16, 16, 16)), cut_scan(raw, to_mm, (16, 16, 16)), atol=1e-3, rtol=0
    )
    for scan in (raw, stored):
        assert (blob(scan.shown.places_mm) > 0.08).all()


def test_what_is_not_air_stands_for_a_scan():
    volume = torch.zeros(1, 30, 30, 30)
    with pytest.raises(UnusableVolume, match="nothing but air"):
        foreground(volume)
    volume[0, 10:20, 5:25, 12:14] = 1
    places = foreground(volume)
    assert (places.min(0) == [10, 5, 12]).all()
    assert (places.max(0) == [19, 24, 13]).all()
    assert (foreground(volume) == places).all()


def box(middle, sides_mm, linear=AXES["upright"]):
    grid = tuple(int(side) for side in sides_mm)
    return Shown(lattice(grid), centred(linear, grid, middle))


def test_two_scans_show_what_the_smaller_shows_whatever_their_axes():
    head, brain = box((0, 0, 0), (180, 220, 200)), box((0, 10, 5), (140, 170, 130), AXES["swapped"])
    common = shown_by_both(head, brain, least_mm=np.array([100.0, 100, 100]))
    assert brain.holds(common).all()
    assert head.holds(common).all()
    assert len(common) > 0.9 * len(brain.voxels)
    assert len(shown_by_both(brain, head, least_mm=NONE_MM)) == len(common)


@pytest.mark.parametrize(
    ("other", "least_mm", "message"),
    [
        (box((500, 0, 0), (100, 100, 100)), NONE_MM, "place them apart: 0% of what the one shows lies where the other"),
        (box((60, 0, 0), (100, 100, 100)), NONE_MM, "place them apart: [34].% of what .*, and 50% has to"),
        (
            box((0, 0, 0), (100, 100, 20)),
            np.array([48.0, 48.0, 48.0]),
            r"both show 9. × 9. × 1. mm, and two crops are to have 48 × 48 × 48 mm in common: take a smaller crop",
        ),
    ],
)
def test_scans_that_do_not_show_the_same_are_told(other, least_mm, message):
    with pytest.raises(UnusableVolume, match=message):
        shown_by_both(box((0, 0, 0), (100, 100, 100)), other, least_mm=least_mm)


def test_a_header_tells_the_field_of_view(tmp_path):
    affine = centred(np.diag([-1.0, 2.0, 3.0]), (20, 18, 16))
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 18, 16), np.int16), affine), tmp_path / "a_T1.nii.gz")
    seen = outline(VolumeFile(tmp_path / "a_T1.nii.gz", "mri"))
    corners = places_mm(affine, (20, 18, 16)).reshape(-1, 3)
    np.testing.assert_allclose(seen.places_mm.min(0), corners.min(0), atol=1e-4)
    np.testing.assert_allclose(seen.places_mm.max(0), corners.max(0), atol=1e-4)


def test_a_coarse_view_shows_the_last_voxels_of_a_scan_that_its_blocks_do_not_divide():
    scan = scan_of(lambda places: places[..., 0], np.eye(4), (25, 8, 8))
    to_mm = np.diag((2.0, 2.0, 2.0, 1.0))
    view = cut_scan(scan, to_mm, (13, 3, 3))[0, :, 1, 1].numpy()
    np.testing.assert_allclose(view[1:12], np.arange(2, 24, 2), atol=1e-4)
    assert abs(view[12] - 24) < 0.5
