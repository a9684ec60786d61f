"""A run on pairs of scans: it resumes exactly, says what it leaves out, and names what it cannot use."""

import io
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from support.heads import at_1_mm
from support.pretraining_runs import QUIET, exact, named, records, tiny, weights
from support.stopping import stop_after
from voxelwave import load_backbone
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.jobs.pretrain.scan_pair_data import ScanPairData
from voxelwave.jobs.synthesize.run import synthesize

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Three heads, each as T1, T2 and CT."""
    folder = tmp_path_factory.mktemp("shared")
    synthesize(folder, num_mri=0, num_ct=0, num_heads=3, contrasts=("T1", "T2", "CT"), size=32, seed=0, workers=1)
    at_1_mm(folder)
    return folder


def listing(folder, rows, columns="image,subject,modality"):
    path = folder / "list.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def configuration(cases, out, *, source="scans", **pairs):
    raw = tiny(cases.parent, out)
    pairs = {"cases": str(cases), "source": source, "modalities": ["mri", "ct"], "spacing_mm": 1.5, **pairs}
    raw["data"] = {"crop_size": [16, 16, 16], "num_workers": 0, "cached_volumes": 10, "pairs": pairs}
    return {**raw, "objective": {"name": "cross_contrast"}}


def configured(raw, name, **changes):
    return named({**raw, **changes}, name, max_steps=8, epochs=20)


def printed(raw, **data):
    """The data of a run, and what is printed about it."""
    lines = io.StringIO()
    raw = {**raw, "data": {**raw["data"], **data}}
    made = ScanPairData(check_config(raw), rank=0, world_size=1, pin_memory=False, console=Console(file=lines))
    return made, lines.getvalue()


@pytest.fixture
def raw(shared, tmp_path):
    return configuration(shared, tmp_path / "runs")


def test_a_resumed_run_on_pairs_of_scans_equals_the_uninterrupted_one(raw):
    whole, parts = configured(raw, "whole"), configured(raw, "parts")
    assert pretrain(whole, console=QUIET)
    assert not pretrain(parts, console=QUIET, should_stop=stop_after(3))
    assert pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(whole)
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {record["modality"] for record in records(whole)} == {"mri+mri", "mri+ct"}
    assert any(record["shared_places"] > 0 for record in records(whole))
    assert {"effective_rank_mri", "effective_rank_ct", "retrieval_mri"} <= records(whole)[0].keys()


@pytest.mark.parametrize("change", [{"num_workers": 2}, {"num_workers": 1, "cached_volumes": 0}])
def test_pairs_of_scans_are_the_same_with_workers_and_without_a_cache(raw, change):
    alone, helped = configured(raw, "alone"), configured(raw, "helped", data={**raw["data"], **change})
    assert pretrain(alone, console=QUIET)
    assert pretrain(helped, console=QUIET)
    assert exact(alone) == exact(helped)


def test_two_views_of_one_scan_are_trained_on_and_the_backbone_is_left(raw):
    raw["data"]["pairs"]["source"] = "views"
    config = configured(raw, "views")
    assert pretrain(config, console=QUIET)
    assert {record["modality"] for record in records(config)} == {"mri+mri", "ct+ct"}
    for place in (config.run_folder(), config.run_folder() / "last.pth"):
        backbone = load_backbone(place)
        for channels in (1, 3):
            assert backbone(torch.rand(1, channels, 16, 16, 16))[-1].shape == (1, 24, 4, 4, 4)


def test_what_is_seen_is_augmented_and_what_is_predicted_is_not(raw):
    data, said = printed(raw)
    assert "pairs of 6 mri, 3 ct scans; sessions: 3 as mri+mri, 3 as mri+ct" in said
    for batch in data.batches(0, 2):
        views = data.augmented(batch, 0, torch.device("cpu"))
        for view, (volume, to_mm), name in zip(views, batch.views, batch.modality.split("+"), strict=True):
            assert torch.equal(view.clean, volume)
            assert torch.equal(view.to_mm, to_mm)
            assert view.labels is None
            assert view.seen.shape[1] == {"mri": 1, "ct": 3}[name]
            assert not torch.equal(view.seen, view.clean)
        again = data.augmented(batch, 0, torch.device("cpu"))
        assert all(torch.equal(one.seen, other.seen) for one, other in zip(views, again, strict=True))


def test_a_prepared_folder_is_paired_by_subject_and_session(shared, tmp_path):
    for subject, session, head in (("01", "a", 0), ("01", "b", 1), ("02", "a", 2)):
        folder = tmp_path / "bids" / f"sub-{subject}" / f"ses-{session}" / "anat"
        folder.mkdir(parents=True)
        for contrast in ("T1", "T2"):
            name = f"sub-{subject}_ses-{session}_{contrast}w.nii.gz"
            shutil.copy(shared / "mri" / f"shared_{head:04d}_{contrast}.nii.gz", folder / name)
    prepared = tmp_path / "prepared"
    Preparer(prepared, preparation(spacing="native"), workers=1, console=QUIET)([str(tmp_path / "bids")])
    data, said = printed(configuration(prepared, tmp_path / "runs", modalities=["mri"]))
    assert "pairs of 6 mri scans; sessions: 3 as mri+mri" in said
    assert "not prepared" not in said
    persons = {}
    for index, batch in enumerate(data.batches(0, 6)):
        view, _ = data.augmented(batch, index, torch.device("cpu"))
        for files, head, person in zip(batch.files, view.heads.tolist(), view.persons.tolist(), strict=True):
            one, other = (file.split("_")[-3:-1] for file in files.split(" and "))
            assert one == other
            persons[head] = person, Path(one[0]).name
    # Two sessions of one subject are two heads of one person.
    assert len(persons) == 3
    assert len(set(persons.values())) == len({person for person, _ in persons.values()}) == 2
    # The list of the same files says the session in a column, or by their paths.
    images = sorted((tmp_path / "bids").rglob("*.nii.gz"))
    rows = [f"{image},anna,mri" for image in images]
    _, said = printed(configuration(listing(tmp_path, rows), tmp_path / "runs", modalities=["mri"]))
    assert "sessions: 2 as mri+mri" in said
    rows = [f"{image},anna,mri,{number // 2}" for number, image in enumerate(images)]
    cases = listing(tmp_path, rows, "image,subject,modality,session")
    _, said = printed(configuration(cases, tmp_path / "runs", modalities=["mri"]))
    assert "sessions: 3 as mri+mri" in said


@pytest.fixture
def mixed(shared, tmp_path):
    """A session that is as it should be; one whose scans lie apart; one with a damaged scan; one of one scan."""
    images = {
        (number, of): shared / "mri" / f"shared_{number:04d}_{of}.nii.gz" for number in range(3) for of in ("T1", "T2")
    }
    moved, damaged = tmp_path / "moved_T2.nii.gz", tmp_path / "damaged_T1.nii.gz"
    image = nibabel.load(images[1, "T2"])
    affine = image.affine.copy()
    affine[:3, 3] += 300
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), moved)
    damaged.write_bytes(images[2, "T1"].read_bytes()[:3000])
    rows = [
        *(f"{images[0, of]},good,mri" for of in ("T1", "T2")),
        *(f"{path},apart,mri" for path in (images[1, "T1"], moved)),
        *(f"{path},broken,mri" for path in (damaged, images[2, "T2"])),
    ]
    return rows, moved, damaged


@pytest.mark.parametrize("check", [True, False])
def test_what_is_left_out_is_counted_and_said_once(mixed, tmp_path, check):
    rows, moved, damaged = mixed
    raw = configuration(listing(tmp_path, rows), tmp_path / "runs", modalities=["mri"])
    _, said = printed(raw, check_content=check)
    assert f"{moved}: their affines place them apart: 0% of what the one shows" in said
    assert "left out pairs: 1, such as" in said
    assert (f"left out {damaged}: " in said) == check
    assert ("left out sessions with one scan alone: 1, such as broken" in said) == check
    assert f"sessions: {1 if check else 2} as mri+mri" in said
    # What the header does not tell is passed over in training, and said once.
    config = configured({**raw, "data": {**raw["data"], "check_content": check}}, "mixed")
    lines = io.StringIO()
    assert pretrain(config, console=Console(file=lines))
    assert lines.getvalue().replace("\n", "").count(f"left out {damaged}") == 1
    assert len(records(config)) == 8


@pytest.mark.parametrize(
    ("kept", "change", "message"),
    [
        (slice(0, 1), {}, r"no session of a subject has two scans in .*, such as good; with source: views"),
        (slice(2, 4), {}, r"none of the 1 pairs of .* can be used; the first, .* and .*moved_T2.nii.gz: their affines"),
        (slice(4, 5), {}, r"none of the 1 scans of .* can be used; the first, .*damaged_T1.nii.gz: .*; with source"),
        (slice(0, 2), {"spacing_mm": 9.0}, r"they both show .* mm, and two crops are to have 72 × 72 × 72 mm in comm"),
        (slice(0, 2), {"modalities": ["mri", "ct"]}, r"'data.pairs.modalities': no pair of .* has a scan of ct"),
        (slice(0, 2), {"modalities": ["ct"]}, r"'data.pairs.cases': .*list.csv lists no scan of ct"),
    ],
)
def test_where_nothing_is_left_one_line_says_why(mixed, tmp_path, kept, change, message):
    rows, _, _ = mixed
    raw = configuration(listing(tmp_path, rows[kept]), tmp_path / "runs", **{"modalities": ["mri"], **change})
    with pytest.raises(InputError, match=message) as caught:
        pretrain(configured(raw, "nothing"), console=QUIET)
    assert "\n" not in str(caught.value)


def test_a_scan_that_changed_and_other_sessions_are_named_on_resume(shared, tmp_path):
    images = [Path(shutil.copy(path, tmp_path)) for path in sorted((shared / "mri").glob("*.nii.gz"))]
    rows = [f"{image},{image.name[7:11]},mri" for image in images]
    raw = configuration(listing(tmp_path, rows), tmp_path / "runs", modalities=["mri"])
    config = configured(raw, "changed")
    assert not pretrain(config, console=QUIET, should_stop=stop_after(2))
    listing(tmp_path, [row.replace(",0001,", ",0000,") for row in rows])
    with pytest.raises(InputError, match=r"cannot resume .*: its (files|volumes) were"):
        pretrain(config, resume=True, console=QUIET)
    listing(tmp_path, rows)
    content = bytearray(images[0].read_bytes())
    content[-6] ^= 1  # of its checksum
    images[0].write_bytes(content)
    config.data.check_content = False
    with pytest.raises(InputError, match=r"shared_0000_T1.nii.gz has changed since the run was begun"):
        pretrain(config, resume=True, console=QUIET)


@pytest.mark.parametrize(
    ("pairs", "more", "message"),
    [
        ({}, {"objective": {"name": "supervised_synthesis"}}, "'supervised_synthesis' needs the tissue of every voxel"),
        ({"contrasts": ["T1", "T2"]}, {}, "'data.pairs': source: scans takes no 'contrasts'"),
        ({"source": "views", "stripped": 0.3}, {}, "'data.pairs': source: views takes no 'stripped'"),
        ({"modalities": None}, {}, "'data.pairs': source: scans needs 'modalities'"),
        ({"modalities": ["mri", "mri"]}, {}, "'data.pairs.modalities': .*name each once"),
        ({"modalities": ["pet"]}, {}, "unknown modality 'pet' in 'data.pairs.modalities'; known: ct, mri"),
        ({"source": "rendered", "modalities": None}, {}, "'data.pairs': source: rendered needs 'contrasts'"),
        ({"source": "rendered"}, {}, "'data.pairs': source: rendered takes no 'modalities'"),
        ({"source": "both"}, {}, "'data.pairs.source'"),
        ({}, {"training": {"batch_size": {"mri": 2}}}, "'training.batch_size' says nothing of modality 'ct'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(raw, pairs, more, message):
    raw["data"]["pairs"] |= pairs
    with pytest.raises(InputError, match=message) as caught:
        check_config({**raw, **more})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["flip", "rotate90", "affine"])
def test_an_augmentation_that_moves_voxels_is_refused(raw, name):
    raw["data"]["augment"] = {"ct": {name: {}}}
    with pytest.raises(InputError, match=f"'data.augment.ct.{name}': it moves voxels"):
        check_config(raw)
    raw["data"]["augment"] = {"ct": {"noise": {"std": 0.02}}}
    resolved = check_config(raw).model_dump(mode="json")
    assert list(resolved["data"]["augment"]["mri"]) == ["bias_field", "gamma", "noise"]
    assert check_config(resolved).model_dump(mode="json") == resolved


def test_real_scans_of_one_subject_are_trained_on(real_data, tmp_path):
    scans = {
        "stroke": ["stroke_T1", "stroke_T2", "stroke_FLAIR"],
        "mni": ["mni152_T1_2mm", "mni152_T2_2mm"],
        "alone": ["afni_T1_head_2mm"],
    }
    rows = [f"{real_data}/volumes/mr/{name}.nii.gz,{of},mri" for of, names in scans.items() for name in names]
    for source, sessions, said_of in (
        ("scans", 2, "left out sessions with one scan alone: 1, such as alone"),
        ("views", 3, ""),
    ):
        raw = configuration(
            listing(tmp_path, rows), tmp_path / "runs", source=source, modalities=["mri"], spacing_mm=3.0
        )
        raw["data"] |= {"crop_size": [32, 32, 32]}
        raw["objective"] = {"name": "cross_contrast", "cross_reconstruction_weight": 0.5}
        data, said = printed(raw)
        assert f"{sessions} as mri+mri" in said
        assert said_of in said
        config = named(raw, source, max_steps=2, epochs=2)
        assert pretrain(config, console=QUIET)
        assert all(np.isfinite(record["loss"]) and record["shared_places"] > 0 for record in records(config))
        # Where one view shows tissue, so does the other, for the most part.
        (batch,) = data.batches(0, 1)
        assert all((volume.amax(1) > 0.1).float().mean() > 0.1 for volume, _ in batch.views)
