"""Two views of scans of one head agree wherever both show it, and depend on their key alone."""

import nibabel
import numpy as np
import pytest
import torch

from voxelwave.data.batches.alternating import Draw
from voxelwave.data.batches.pair_geometry import Geometry, rotation
from voxelwave.data.batches.scan_pairs import ScanPairs, collate_scan_pairs
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.modalities import Modality
from voxelwave.data.store import StoredInfo, write_stored
from voxelwave.errors import InputError
from voxelwave.objectives.cross_contrast import corresponding, interpolated

GEOMETRY = Geometry((16, 16, 16), spacing_mm=2.5, shared=0.5)


class Plain(Modality):
    """The values of a file, as they are."""

    channels = 1

    def bounds(self, array):
        return 0.0, 1.0

    def scale(self, array, bounds):
        return np.asarray(array, dtype=np.float32)[None]


def smooth(places):
    """A function of the place in mm, above 0 within the head."""
    waves = np.sin(places / 14 @ rotation(np.array([0.4, 0.3, 0.2])).T).mean(-1)
    inside = 1 / (1 + np.exp((np.linalg.norm(places - np.array([4.0, -6.0, 8.0]), axis=-1) - 36) / 3))
    return (0.55 + 0.4 * waves) * inside


def write(path, linear, grid, *, wrong_by_mm=0.0):
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array([4.0, -6.0, 8.0]) - linear @ ((np.array(grid) - 1) / 2)
    voxels = np.stack(np.meshgrid(*(np.arange(side) for side in grid), indexing="ij"), -1)
    values = smooth(voxels @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
    affine[:3, 3] += wrong_by_mm
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return VolumeFile(path, "mri")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two scans of one head, with axes and spacings of their own."""
    folder = tmp_path_factory.mktemp("scans")
    return [
        write(folder / "a_T1.nii.gz", np.diag([1.0, 1.0, 1.2]), (90, 94, 80)),
        write(folder / "a_T2.nii.gz", rotation(np.array([0.2, 0.3, -0.2])) @ np.diag([-1.5, 1.3, 2.0]), (64, 70, 50)),
    ]


def pairs_of(groups, cached=2):
    return ScanPairs({"mri+mri": groups}, {"mri": Plain()}, GEOMETRY, cached=cached)


def draw(index, number):
    return Draw("mri+mri", index, (7, "sample", number))


@pytest.mark.parametrize("source", ["scans", "views"])
def test_views_show_the_head_where_their_affines_say_and_agree_with_each_other(scans, source):
    pair = (scans[0], scans[1]) if source == "scans" else (scans[0], scans[0])
    compared = []
    for number in range(6):
        one, other = pairs_of([[pair]])[draw(0, number)].views
        assert not torch.equal(one.to_mm, other.to_mm)
        voxels = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1)
        for view in (one, other):
            to_mm = view.to_mm.double().numpy()
            places = voxels @ to_mm[:3, :3].T + to_mm[:3, 3]
            # Means over two voxels and interpolation smooth a little; beyond the head all is 0.
            assert np.abs(view.volume[0].numpy() - smooth(places)).max() < 0.06
            assert np.abs(view.volume[0].numpy() - smooth(places)).mean() < 0.01
        # The same by the way that the objective takes from one view to the other.
        there = corresponding(one.to_mm[None], other.to_mm[None], (16, 16, 16), patch_size=1)
        inside = ((there.tokens >= 0) & (there.tokens <= 15)).all(-1)
        found, _ = interpolated(other.volume[None], torch.ones(1, 16, 16, 16, dtype=torch.bool), there.tokens)
        compared.append((found[..., 0] - one.volume)[inside].abs())
        assert inside.float().mean() > 0.1
    assert torch.cat(compared).mean() < 0.015
    assert torch.cat(compared).max() < 0.1


def test_a_pair_depends_on_its_key_alone_and_either_scan_comes_first(scans):
    first = set()
    for number in range(8):
        samples = [pairs_of([[tuple(scans)]], cached)[draw(0, number)] for cached in (0, 2)]
        for one, other in zip(*(sample.views for sample in samples), strict=True):
            assert torch.equal(one.volume, other.volume)
            assert torch.equal(one.to_mm, other.to_mm)
        assert samples[0].file == samples[1].file
        first.add(samples[0].file.partition(" and ")[0])
    assert first == {str(file.path) for file in scans}


def test_both_views_are_around_the_head_and_share_what_they_must(scans):
    centres = []
    for number in range(20):
        views = pairs_of([[tuple(scans)]])[draw(0, number)].views
        middles = [(view.to_mm.double() @ torch.tensor([7.5, 7.5, 7.5, 1], dtype=torch.float64))[:3] for view in views]
        assert all(smooth(middle.numpy()) > 0.02 for middle in middles)
        centres.append((middles[0] - middles[1]).abs().max())
    assert max(centres) <= 20 + 1e-3
    assert max(centres) > 5


def test_what_cannot_be_used_is_passed_over_and_named(scans, tmp_path):
    apart = write(tmp_path / "c_T1.nii.gz", 2 * np.eye(3), (45, 45, 45), wrong_by_mm=50)
    damaged = tmp_path / "b_T1.nii.gz"
    damaged.write_bytes(scans[0].path.read_bytes()[:9000])
    broken = VolumeFile(damaged, "mri")
    pairs = pairs_of([[(broken, scans[0])], [(scans[0], apart)], [(scans[1], broken), tuple(scans)]])
    for index in range(3):
        batch = collate_scan_pairs([pairs[draw(index, number)] for number in range(6)])
        assert all({*of.split(" and ")} == {str(file.path) for file in scans} for of in batch.files)
        assert batch.views[0][0].shape == (6, 1, 16, 16, 16)
        problems = "\n".join(batch.problems)
        assert f"{damaged}: " in problems
        assert (f"{scans[0].path} and {apart.path}: their affines place them apart" in problems) == (index <= 1)
    with pytest.raises(InputError, match=r"no pair of mri\+mri can be used, of 1 groups: .*b_T1.nii.gz: "):
        pairs_of([[(broken, scans[0])]])[draw(0, 0)]
    assert pairs.file_of(draw(1, 0)) == f"{scans[0].path} and {apart.path}"


def test_a_scan_that_was_away_for_a_while_is_read_again(scans, tmp_path):
    copy = tmp_path / "b_T1.nii.gz"
    pairs = pairs_of([[(VolumeFile(copy, "mri"), scans[0])]])
    with pytest.raises(InputError, match=r"b_T1.nii.gz: no such file"):
        pairs[draw(0, 0)]
    copy.write_bytes(scans[0].path.read_bytes())
    assert not pairs[draw(0, 0)].problems


def test_damage_of_a_part_of_a_stored_scan_concerns_the_crops_that_meet_it(scans, tmp_path):
    image = nibabel.load(scans[0].path)
    info = StoredInfo(modality="mri", affine=image.affine.tolist(), bounds=(0.0, 1.0))
    array = np.asarray(image.dataobj).astype(np.float16)
    stored = tmp_path / "d_T1.vxw"
    write_stored(stored, array, info, np.argwhere(array > 0.1).astype(np.int16)[::50])
    content = bytearray(stored.read_bytes())
    content[-5] ^= 1  # of the last chunk
    stored.write_bytes(content)
    groups = [[(VolumeFile(stored, "mri"), scans[1])], [tuple(scans)]]
    pairs, passed_over = pairs_of(groups), []
    for number in range(12):
        samples = [of[draw(0, number)] for of in (pairs, pairs_of(groups))]
        assert torch.equal(samples[0].views[0].volume, samples[1].views[0].volume)
        assert samples[0].problems == samples[1].problems
        assert all(f"{stored}: chunk" in problem for problem in samples[0].problems)
        assert (str(stored) in samples[0].file) == (not samples[0].problems)
        passed_over.append(bool(samples[0].problems))
    assert any(passed_over)
    assert not all(passed_over)


def test_all_pairs_of_a_session_are_of_one_head_whichever_scan_comes_first(scans):
    one, two = scans
    pairs = pairs_of([[(one, two), (one, one)], [(two, two)]])
    samples = [pairs[draw(0, number)] for number in range(12)]
    assert len({sample.file for sample in samples}) == 3
    assert collate_scan_pairs([*samples, pairs[draw(1, 0)]]).heads.tolist() == [0] * 12 + [1]
