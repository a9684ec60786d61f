from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.data.listing.cases import Case
from voxelwave.downstream.embedding import token_centres
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.jobs.probe import correspondence
from voxelwave.jobs.probe.correspondence import compare_scans, field_of_view
from voxelwave.jobs.probe.features import RAW, key_of

PLACE, FIELD = "place", "place in the field of view"
SETTINGS = {"patch_size": 4, "embed_dim": 12, "num_heads": 2, "depth": 1}


def pyramid(**preprocessing):
    described = {"architecture": {"name": "waveformer", "settings": SETTINGS}, "preprocessing": preprocessing}
    return FeaturePyramid(WaveFormer3D((1, 3), **SETTINGS), description=described).eval()


def coded(points):
    """Features of points whose cosine is the higher the nearer two points are."""
    generator = np.random.default_rng(0)
    return torch.from_numpy(
        np.cos(points @ generator.normal(size=(3, 512)) / 2 + generator.uniform(0, 6.3, 512))
    ).float()


@pytest.fixture
def ideal(monkeypatch):
    """Two backbones, of which one knows where tokens lie in the scan, and one where in the field of view."""
    shown = []
    features = {PLACE: pyramid(), FIELD: pyramid()}

    def seen(*sides, **settings):
        shown.append(field_of_view(*sides, **settings))
        return shown[-1]

    def embed(backbone, volume, *, chosen, size):
        tokens = chosen.nonzero().numpy()
        matrix = token_centres(volume.shape, 4, size=size)
        start = [side.start for side in shown[-1]]
        voxels = tokens @ matrix[:3, :3].T + matrix[:3, 3] + start
        return coded(voxels / 4 if backbone is features[PLACE] else tokens)

    monkeypatch.setattr(correspondence, "field_of_view", seen)
    monkeypatch.setattr(correspondence, "embed_tokens", embed)
    return features


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """T1 and T2 of three heads: balls that differ in size and place, in air without noise."""
    folder, cases = tmp_path_factory.mktemp("pairs"), []
    generator = np.random.default_rng(0)
    for number, (radius, middle) in enumerate(((21, 24), (18, 23), (20, 25))):
        inside = np.linalg.norm(np.indices((48, 48, 48)) - middle, axis=0) < radius
        labels = folder / f"head{number}_labels.nii.gz"
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), np.diag([2.0, 2, 2, 1])), labels)
        for contrast in ("T1", "T2"):
            image = np.where(inside, generator.uniform(100, 900, inside.shape), 0).astype(np.float32)
            path = folder / f"head{number}_{contrast}.nii.gz"
            nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 2, 1])), path)
            cases.append(Case(path.name, path, "mri", f"head{number}", label=labels))
    return [case for case in cases if "T1" in case.name], [case for case in cases if "T2" in case.name]


def test_features_of_the_place_find_it_and_those_of_the_field_of_view_do_not(ideal, pairs):
    own, other = compare_scans(*pairs, ideal, classes=None, seed=0)
    assert set(own.subjects) == {"head0", "head1", "head2"}
    means = {name: np.concatenate(found).mean() for name, found in own.measured.items()}
    assert means[PLACE] == 1
    assert means[FIELD] < 0.05
    assert 0 < np.concatenate(own.blind).mean() < 0.5
    # Of other heads: a place in space is right up to how the heads differ, one in the field of view up to its shift.
    apart = {name: np.concatenate(found).mean() for name, found in other.measured.items()}
    oracle, blind = np.concatenate(other.oracle).mean(), np.concatenate(other.blind).mean()
    assert oracle < apart[PLACE] < min(apart[FIELD], blind)
    assert oracle < 4 * np.sqrt(3)  # tokens are 8 mm wide


def test_the_fields_of_view_of_a_pair_are_far_apart_and_not_by_whole_tokens():
    shifts = []
    for number in range(40):
        one, other = (
            field_of_view((96, 96, 40), 4, last=last, key=(f"{name}{number}",), seed=0)
            for last, name in ((False, "T1_"), (True, "T2_"))
        )
        for first, second, side in zip(one, other, (96, 96, 40), strict=True):
            assert (first.stop - first.start) % 4 == 0
            assert 0 <= min(first.start, second.start) <= max(first.stop, second.stop) <= side
            shifts.append(abs(first.start - second.start) / (side - (first.stop - first.start)))
    assert min(shifts) >= 0.5
    assert len(set(shifts)) > 10
    thin = field_of_view((3, 9, 4), 4, last=False, key=("thin",), seed=0)
    assert [part.stop - part.start for part in thin] == [3, 4, 4]


def test_a_scan_is_not_its_own_pair_and_alone_it_has_no_other_head(pairs):
    own, other = compare_scans(pairs[0][:1], pairs[0][:1], {"one": pyramid()}, classes=None, seed=0)
    assert not own.subjects
    assert not other.subjects


def test_scans_of_two_sessions_are_not_taken_for_aligned(pairs):
    (one, *_), (other, *_) = pairs
    apart = replace(other, session="2")
    own, _ = compare_scans([replace(one, session="1")], [apart], {"one": pyramid()}, classes=None, seed=0)
    assert not own.subjects
    earlier = replace(pairs[0][1], subject=one.subject, session="1")
    found, _ = compare_scans([earlier, replace(one, session="2")], [apart], {"one": pyramid()}, classes=None, seed=0)
    alone, _ = compare_scans([replace(one, session="2")], [apart], {"one": pyramid()}, classes=None, seed=0)
    assert found.subjects == alone.subjects != []


def test_scans_of_one_name_in_folders_of_their_own_are_seen_from_places_of_their_own():
    places = {
        field_of_view((96, 96, 96), 4, last=False, key=key_of(Case("T1", Path(f"{who}/T1.nii"), "mri", who)), seed=0)[
            0
        ].start
        for who in "abcdefgh"
    }
    assert len(places) > 2


def test_raw_voxels_of_one_channel_are_compared_with_the_mean_of_three(pairs, tmp_path):
    image = nib.load(pairs[1][0].image)
    path = tmp_path / "hounsfield.nii.gz"
    nib.save(nib.Nifti1Image(2 * np.asarray(image.dataobj) - 1000, image.affine), path)
    own, _ = compare_scans(pairs[0], [Case("ct", path, "ct", "head0")], {"one": pyramid()}, classes=None, seed=0)
    assert set(own.subjects) == {"head0"}
    assert len(np.concatenate(own.measured[RAW])) == len(own.subjects) > 20


def test_real_pairs_lie_where_their_affines_say(ideal, real_data):
    folder = real_data / "volumes" / "mr"
    for features in ideal.values():
        features.description["preprocessing"]["spacing_mm"] = 2.0
    one, other = ([Case(name, folder / f"{name}.nii.gz", "mri", "stroke")] for name in ("stroke_T1", "stroke_FLAIR"))
    own, _ = compare_scans(one, other, ideal, classes=None, seed=0)
    assert len(own.subjects) > 100
    assert np.concatenate(own.measured[PLACE]).mean() == 1
    assert np.concatenate(own.measured[FIELD]).mean() < 0.1
