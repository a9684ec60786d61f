"""Situations from public bug reports of other projects, each as its README says it should end."""

import csv
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from support.command import voxelwave
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.splits import split_cases
from voxelwave.data.store import StoredVolume


@pytest.fixture
def case(request, real_data, tmp_path):
    """A copy of the folder of a case, in which its command is run."""
    folder = real_data / "cases" / request.param
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return shutil.copytree(folder, tmp_path / request.param)


@pytest.fixture
def model(real_data):
    """A model of two classes at 2 mm."""
    return real_data / "cases" / "model_seg2mm"


def prepared(case, source, *options):
    """The rows of what `prepare` makes of `source`; each call into a folder of its own."""
    out = case / f"OUT{len(list(case.glob('OUT*')))}"
    voxelwave("prepare", source, out, "--spacing", "native", "--no-crop", "--workers", "1", *options, folder=case)
    with (out / "manifest.csv").open(newline="") as file:
        return [row | {"output": str(out / row["output"])} for row in csv.DictReader(file)]


def labels_of(path):
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize(
    ("case", "source", "accepted", "reasons"),
    [
        ("bids-part-phase", "ds", 1, ["'part-phase' in the name"]),
        ("ct-offset-with-padding", "CT", 0, ["CT is not in Hounsfield units.*--hu-offset -1024"]),
        ("ct-two-passes-one-series", "scan", 2, []),
        ("dicom-htj2k", "scan", 1, []),
        ("label-off-by-scaling", ".", 4, []),
        ("nifti-in-metres", "MRI", 1, []),
        ("nifti-vox-offset-0", "MRI", 0, ["begin at byte 0, within the header"]),
        ("nrrd-dot-slash", ".", 1, []),
    ],
    indirect=["case"],
)
def test_what_is_accepted_and_why_the_rest_is_not(case, source, accepted, reasons):
    rows = prepared(case, source)
    refused = [row["reason"] for row in rows if row["status"] == "refused"]
    assert len(rows) - len(refused) == accepted
    assert len(refused) == len(reasons)
    for reason, expected in zip(refused, reasons, strict=True):
        assert re.search(expected, reason), reason


@pytest.mark.parametrize("case", ["ct-three-frames"], indirect=True)
def test_three_time_points_of_a_ct_are_three_volumes(case):
    rows = prepared(case, "CT", "--four-d", "all")
    assert [(row["status"], row["stored_shape"]) for row in rows] == [("accepted", "41x34x30")] * 3


@pytest.mark.parametrize("case", ["predict-passes-over"], indirect=True)
def test_scans_of_every_format_are_predicted(case, model):
    ended = voxelwave("predict", model, "scans", "OUT", "--overlap", "0", folder=case)
    assert (ended.code, "predicted: 3 images, 0 cannot be used" in ended.out) == (0, True)
    labels = [labels_of(path) for path in sorted((case / "OUT").rglob("*_seg.nii.gz"))]
    assert len(labels) == 3
    assert all((one > 0).any() for one in labels)


@pytest.mark.parametrize("case", ["nifti-in-metres"], indirect=True)
def test_metres_are_read_as_millimetres(case):
    (row,) = prepared(case, "MRI")
    assert row["spacing_mm"] == "4x4x4"


@pytest.mark.parametrize("case", ["ct-two-passes-one-series"], indirect=True)
def test_two_passes_are_two_volumes_of_as_many_slices(case):
    shapes = [row["shape"] for row in prepared(case, "scan")]
    assert len(set(shapes)) == 1
    assert "20" in shapes[0].split("x")


@pytest.mark.parametrize("case", ["mr-monochrome1"], indirect=True)
def test_an_inverted_image_is_read_as_it_is_displayed(case):
    (inverted,), (plain,) = (prepared(case, source) for source in ("scan", "same_as_monochrome2"))
    volumes = [StoredVolume(Path(row["output"])).read() for row in (inverted, plain)]
    assert np.corrcoef(*(volume.ravel() for volume in volumes))[0, 1] > 0.999


@pytest.mark.parametrize("case", ["predict-last-plane"], indirect=True)
def test_the_last_plane_is_labelled_as_the_one_before_it(case, model):
    assert voxelwave("predict", model, "p1_T1.nii.gz", "OUT", "--overlap", "0", folder=case).code == 0
    labels = labels_of(case / "OUT" / "p1_T1_seg.nii.gz") > 0
    for axis in range(3):
        last, before = (np.count_nonzero(np.take(labels, plane, axis)) for plane in (-1, -2))
        assert last == before > 1500


@pytest.mark.parametrize("case", ["predict-same-name-glob"], indirect=True)
def test_results_of_scans_with_one_name_stay_with_their_patients(case, model):
    command = ("predict", model, "site/*/T1.nii.gz", "OUT", "--overlap", "0")
    assert voxelwave(*command, folder=case).code == 0
    before = {name: labels_of(case / f"OUT/{name}/T1_seg.nii.gz") for name in ("patient02", "patient03")}
    shutil.copytree(case / "later" / "patient01", case / "site" / "patient01")
    ended = voxelwave(*command, folder=case)
    assert ended.code == 0
    assert "predicted: 1 images, 2 were there" in ended.out
    assert all(np.array_equal(labels_of(case / f"OUT/{name}/T1_seg.nii.gz"), labels) for name, labels in before.items())
    alone = voxelwave("predict", model, "site/patient01/T1.nii.gz", "ALONE", "--overlap", "0", folder=case)
    assert alone.code == 0
    assert np.array_equal(labels_of(case / "ALONE/T1_seg.nii.gz"), labels_of(case / "OUT/patient01/T1_seg.nii.gz"))


@pytest.mark.parametrize(
    ("case", "cases"),
    [("label-off-by-scaling", "2 training, 0 validation"), ("cases-column-Subject", "6 training, 2 validation")],
    indirect=["case"],
)
def test_a_list_is_trained_on_as_it_is_meant(case, cases):
    ended = voxelwave("finetune", "seg.yaml", folder=case)
    assert ended.code == 0, ended.err
    assert f"cases: {cases}" in ended.out


@pytest.mark.parametrize("case", ["cases-column-Subject"], indirect=True)
def test_the_scans_of_one_patient_are_in_one_part(case):
    found = find_cases(case / "cases.csv", modality="mri")
    assert len({one.subject for one in found}) == len(found) / 2
    assert not any(one.targets for one in found)
    for fold in range(4):
        split = split_cases(found, folds=4, fold=fold, seed=0)
        assert not {one.subject for one in split.train} & {one.subject for one in split.validation}
