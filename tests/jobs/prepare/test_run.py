"""What becomes of every file: taken, refused with a reason, paired; and what the command says and returns."""

from __future__ import annotations

import gzip
import io
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from support.command import error_of, voxelwave
from voxelwave.data.listing.discovery import Source, find_files
from voxelwave.data.listing.manifest import LABEL, MANIFEST, read_manifest, split_of
from voxelwave.data.reading import dicom
from voxelwave.data.store import StoredVolume
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare import run as prepare_recipe
from voxelwave.jobs.prepare import work as prepare_work
from voxelwave.jobs.prepare.headers import read_headers
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.ops.loggers import printable

SHAPE = (12, 13, 14)


def mri(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(0, 900, shape).astype(np.float32)


def ct(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)


def mask(seed=0, shape=SHAPE):
    return (np.random.default_rng(seed).random(shape) > 0.5).astype(np.uint8)


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.MGHImage if path.suffix == ".mgz" else nibabel.Nifti1Image
    nibabel.save(image(array, np.eye(4) if affine is None else affine), path)
    return path


def prepare(out, *sources, said=None, workers=1, strict=False, holdout=None, labels=True, **settings):
    settings = {"spacing": "native", **settings}
    console = Console(file=said or io.StringIO(), width=200)
    job = Preparer(
        out,
        preparation(**settings),
        workers=workers,
        strict=strict,
        holdout=holdout,
        labels=labels,
        console=console,
    )
    return job([str(source) for source in sources])


def table(out, root):
    """Rows by the file's place below `root`, and for label maps by that of their image, too."""
    found = {}
    for row in read_manifest(out / MANIFEST):
        key = os.path.relpath(row.file, root)
        found[f"{key} > {os.path.relpath(row.label_for, root)}" if row.label_for else key] = row
    return found


def stored(out, row):
    return StoredVolume(out / row.output).read()


def test_the_described_layout_works_as_it_is(tmp_path):
    openmind, ct_folder = tmp_path / "openmind/OpenMind_processed", tmp_path / "NIH_deeplesion/CT"
    for number, name in enumerate(["MRI_T1/sub-01_T1w", "MRI_T2/sub-01_T2w", "MRA/sub-02_angio", "MRI_T1/0042"]):
        save(openmind / f"{name}.nii.gz", mri(number))
    for number, name in enumerate(["000001_01_01_103-115", "000001_02_01_008-023", "000017_01_01_103-115"]):
        save(ct_folder / f"{name}.nii.gz", ct(number))
    out = tmp_path / "prepared"
    outcome = prepare(out, openmind, ct_folder.parent, spacing="1.0")
    assert (outcome.complete, outcome.unusable) == (True, 0)
    rows = {Path(name).name: row for name, row in table(out, tmp_path).items()}
    assert {name: (row.modality, row.subject, row.status) for name, row in rows.items()} == {
        "sub-01_T1w.nii.gz": ("mri", "sub-01", "accepted"),
        "sub-01_T2w.nii.gz": ("mri", "sub-01", "accepted"),
        "sub-02_angio.nii.gz": ("mri", "sub-02", "accepted"),
        "0042.nii.gz": ("mri", "0042", "accepted"),
        "000001_01_01_103-115.nii.gz": ("ct", "000001", "accepted"),
        "000001_02_01_008-023.nii.gz": ("ct", "000001", "accepted"),
        "000017_01_01_103-115.nii.gz": ("ct", "000017", "accepted"),
    }
    assert rows["0042.nii.gz"].told_by == "'t1' in the folder 'MRI_T1'"
    assert len(find_files(Source(str(out), "mri"))) == 4
    assert len(find_files(Source(str(out), "ct"))) == 3
    assert np.array_equal(stored(out, rows["000017_01_01_103-115.nii.gz"]), ct(2))


def test_a_bids_data_set_works_as_it_is(tmp_path):
    bids = tmp_path / "ds"
    bids.mkdir()
    (bids / "dataset_description.json").write_text("{}")
    save(bids / "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", mri(0))
    save(bids / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz", mri(1))
    save(bids / "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz", mri(2, (*SHAPE, 4)))
    save(bids / "sub-01/ses-1/fmap/sub-01_ses-1_phasediff.nii.gz", mri(3))
    save(bids / "sub-01/ses-1/fmap/sub-01_ses-1_magnitude1.nii.gz", mri(4))
    save(bids / "sub-01/ses-1/pet/sub-01_ses-1_pet.nii.gz", mri(5))
    save(bids / "derivatives/pre/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", mri(6))
    save(bids / "derivatives/lesions/sub-01/anat/sub-01_desc-lesion_mask.nii.gz", mask())
    out = tmp_path / "prepared"
    prepare(out, bids)
    told = {name: (row.status, row.reason) for name, row in table(out, bids).items()}
    image = "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    neither = "neither MRI nor CT by the BIDS folder fmap; say which with --modality"
    assert told == {
        image: ("accepted", ""),
        "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz": ("accepted", ""),
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz": (
            "refused",
            "4 axes: one volume a file is needed, got shape (12, 13, 14, 4)",
        ),
        "sub-01/ses-1/fmap/sub-01_ses-1_phasediff.nii.gz": ("refused", neither),
        "sub-01/ses-1/fmap/sub-01_ses-1_magnitude1.nii.gz": ("refused", neither),
        "sub-01/ses-1/pet/sub-01_ses-1_pet.nii.gz": (
            "refused",
            "neither MRI nor CT by 'pet' in the name 'sub-01_ses-1_pet'; say which with --modality",
        ),
        f"derivatives/lesions/sub-01/anat/sub-01_desc-lesion_mask.nii.gz > {image}": ("accepted", ""),
    }


# Modality


def test_what_is_unsure_is_listed_and_what_nothing_tells_is_refused(tmp_path):
    scans = tmp_path / "scans"
    save(scans / "a.nii", ct())
    save(scans / "b.nii", mri())
    save(scans / "ct_to_t1.nii", mri(1))
    save(scans / "c_T1.nii", ct(1))
    said = io.StringIO()
    prepare(tmp_path / "out", scans, said=said)
    rows = table(tmp_path / "out", scans)
    assert (rows["a.nii"].modality, rows["a.nii"].told_by) == (
        "ct",
        "air at about -1000, as in Hounsfield units, unsure",
    )
    assert (rows["ct_to_t1.nii"].modality, rows["ct_to_t1.nii"].status) == ("mri", "accepted")
    assert rows["b.nii"].reason.startswith("modality unknown")
    assert "look like Hounsfield units: say which with --modality" in rows["c_T1.nii"].reason
    listed = said.getvalue().partition("unsure of the modality: 2")[2]
    assert f"{scans}/a.nii: taken for ct by air" in listed
    assert f"{scans}/ct_to_t1.nii: taken for mri by 't1' in the name" in listed


def test_what_was_refused_for_its_modality_is_taken_once_it_is_said(tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    save(scans / "a_T1.nii", mri(0))
    save(scans / "b.nii", mri(1))
    save(scans / "c.nii", mri(2, (9, 9, 5)))
    (scans / "d.nii").write_bytes(b"damaged")
    prepare(out, scans)
    assert table(out, scans)["b.nii"].status == "refused"
    first = (out / "mri/a_T1.vxw").stat().st_mtime_ns
    prepare(out, scans, modality="mri")
    rows = table(out, scans)
    assert (rows["b.nii"].status, rows["b.nii"].told_by) == ("accepted", "--modality")
    assert [rows[name].status for name in ("a_T1.nii", "c.nii", "d.nii")] == ["accepted", "refused", "refused"]
    assert (out / "mri/a_T1.vxw").stat().st_mtime_ns == first
    prepare(out, scans, modality="mri")
    assert table(out, scans) == rows


def test_a_folder_is_asked_however_it_is_written(tmp_path, monkeypatch):
    save(tmp_path / "CT/ds1/sub-01/anat/x.nii", ct())
    monkeypatch.chdir(tmp_path / "CT")
    prepare(tmp_path / "out", ".")
    (row,) = read_manifest(tmp_path / "out" / MANIFEST)
    assert (row.told_by, row.subject, row.file) == (
        "'ct' in the folder 'CT'",
        "ds1/sub-01",
        str(tmp_path / "CT/ds1/sub-01/anat/x.nii"),
    )
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    for source in (tmp_path / "CT", "../CT"):
        prepare(tmp_path / "out", source)
        assert (tmp_path / "out" / MANIFEST).read_bytes() == before


# Formats


def dicom_series(folder, values, **tags):
    """Write the slices of a CT, with tags beside those that every image has."""
    pydicom = pytest.importorskip("pydicom", reason="reading DICOM is an extra: pip install 'voxelwave[dicom]'")
    folder.mkdir(parents=True)
    for number in range(values.shape[2]):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = (
            "1.2.840.10008.5.1.4.1.1.2",
            f"{tags['SeriesInstanceUID']}.{number}",
        )
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY"]
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
        dataset.Columns, dataset.Rows = values.shape[:2]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.ImagePositionPatient, dataset.PixelSpacing = [0, 0, 2 * number], [1, 1]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = values[:, :, number].T.tobytes()
        for tag, value in tags.items():
            setattr(dataset, tag, value)
        dataset.save_as(folder / f"slice{number}.dcm", enforce_file_format=True)


def test_a_dicom_series_is_prepared_as_one_scan(tmp_path):
    folder = tmp_path / "in/MR of patient/tumour"
    values = ct(shape=(12, 13, 10))
    dicom_series(folder, values, SeriesInstanceUID="1.2.3", PatientID="Doe^Jane", SeriesDescription="Head of Jane Doe")
    (folder / "broken.dcm").write_bytes(b"no DICOM at all")
    out = tmp_path / "out"
    outcome = prepare(out, tmp_path / "in", crop=False)
    rows = table(out, tmp_path / "in")
    assert outcome.unusable == rows["MR of patient/tumour/broken.dcm"].damaged == 1
    row = rows["MR of patient/tumour#1.2.3"]
    assert (row.status, row.modality, row.told_by) == ("accepted", "ct", "the DICOM modality CT")
    assert np.array_equal(stored(out, row), values[::-1, ::-1])  # LPS to RAS
    everything = (out / MANIFEST).read_text() + "".join(map(str, out.rglob("*")))
    assert "Jane" not in everything
    before = (out / MANIFEST).read_bytes()
    prepare(out, tmp_path / "in", crop=False)
    assert (out / MANIFEST).read_bytes() == before
    with pytest.raises(InputError, match=r"broken\.dcm: .*--strict"):
        prepare(out, tmp_path / "in", crop=False, strict=True)


def test_headers_are_the_same_read_in_several_processes(tmp_path, monkeypatch):
    dicom_series(tmp_path / "a", ct(shape=(12, 13, 10)), SeriesInstanceUID="1.2.3")
    (tmp_path / "a" / "broken.dcm").write_bytes(b"no DICOM at all")
    files = sorted((tmp_path / "a").iterdir())
    monkeypatch.setattr("voxelwave.jobs.prepare.headers.FILES_AT_ONCE", 3)
    assert read_headers(files, workers=2) == dicom.read_headers(files) == read_headers(files, workers=1)
    assert read_headers([], workers=2) == []


def test_series_without_a_patient_are_of_the_subject_of_their_study(tmp_path):
    values = ct(shape=(12, 13, 10))
    for study, series in enumerate(["1.2.1", "1.2.2", "1.2.3", "1.2.4"]):
        tags = {"SeriesInstanceUID": series, "StudyInstanceUID": f"9.{study // 2}", "PatientID": ""}
        dicom_series(tmp_path / "in/series" / series, np.roll(values, study, axis=0), **tags)
    dicom_series(tmp_path / "in/patient7/ct", values + 1, SeriesInstanceUID="1.2.5", StudyInstanceUID="9.7")
    prepare(tmp_path / "out", tmp_path / "in", crop=False)
    subjects = {row.subject for row in table(tmp_path / "out", tmp_path / "in").values()}
    assert len(subjects) == 3
    assert "patient7" in subjects  # which is no name of a series
    of = {name: row.subject for name, row in table(tmp_path / "out", tmp_path / "in").items()}
    assert of["series/1.2.1#1.2.1"] == of["series/1.2.2#1.2.2"] != of["series/1.2.3#1.2.3"] == of["series/1.2.4#1.2.4"]


def test_a_label_map_is_given_to_the_series_whose_uid_its_name_begins_with(tmp_path):
    values = ct(shape=(12, 13, 10))
    for number, series in enumerate(["1.2.3", "1.2.3.4"]):
        tags = {"SeriesInstanceUID": series, "PatientID": f"p{series}"}
        dicom_series(tmp_path / "in/series" / f"scan {number}", np.roll(values, number, axis=0), **tags)
    labels = np.zeros(values.shape, np.uint8)
    labels[4:8, 4:8, 4:8] = 3
    to_mm = np.diag([1.0, 1, 2, 1])
    to_mm[:2, 3] = -11, -12  # LPS to RAS
    for name in ("1.2.3_seg.nii", "1.2.3.4/cow_seg.nii", "1.2.3.4_seg.nii", "1.2.3.45_seg.nii", "other_seg.nii"):
        save(tmp_path / "in/segmentations" / name, labels, affine=to_mm)
    prepare(tmp_path / "out", tmp_path / "in", crop=False)
    rows = table(tmp_path / "out", tmp_path / "in")
    given = {name.split()[0]: Path(row.label_for).name for name, row in rows.items() if row.modality == "label"}
    assert given == {
        "segmentations/1.2.3_seg.nii": "scan 0#1.2.3",
        "segmentations/1.2.3.4/cow_seg.nii": "scan 1#1.2.3.4",
        "segmentations/1.2.3.4_seg.nii": "scan 1#1.2.3.4",
        "segmentations/1.2.3.45_seg.nii": "",
        "segmentations/other_seg.nii": "",
    }


def test_nrrd_is_prepared_like_nifti(tmp_path):
    nrrd = pytest.importorskip("nrrd", reason="reading NRRD is an extra: pip install 'voxelwave[dicom]'")
    save(tmp_path / "in/a_T1.nii", mri())
    header = {"space": "right-anterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "in/b_T1.nrrd"), mri(), header)
    nrrd.write(str(tmp_path / "in/c_T1.nrrd"), mri(1), header)
    prepare(tmp_path / "out", tmp_path / "in")
    rows = table(tmp_path / "out", tmp_path / "in")
    assert rows["b_T1.nrrd"].reason == f"the same content as {tmp_path}/in/a_T1.nii"
    assert (rows["c_T1.nrrd"].status, rows["c_T1.nrrd"].subject) == ("accepted", "c")


# Values and shapes


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.linspace(0, 1, 2184).reshape(SHAPE), "set ct.require_hu=false"),
        (np.linspace(0, 3794, 2184).reshape(SHAPE), "--hu-offset -1024"),
        (np.linspace(-1, 1, 2184).reshape(SHAPE), "tissue is above 20, but the values are -1 to 1"),
        (np.linspace(0, 4095, 2184).reshape(SHAPE), "air is -1000, but the values are 0 to 4095"),
    ],
    ids=["0 to 1", "template", "-1 to 1", "offset"],
)
def test_ct_in_other_units_is_refused_with_what_overrides_it(tmp_path, array, reason):
    save(tmp_path / "CT/a.nii", array.astype(np.float32))
    with pytest.raises(InputError, match=r"none of 1 files can be used; the first, .*a\.nii: CT is not in Hounsfield"):
        prepare(tmp_path / "out", tmp_path / "CT")
    assert reason in table(tmp_path / "out", tmp_path / "CT")["a.nii"].reason


def test_an_offset_is_added_where_one_is_missing_and_not_to_hounsfield_units(tmp_path):
    whole = np.random.default_rng(0).normal(30, 300, (24, 24, 24)).clip(-1000, 1900).astype(np.int16)
    whole[:12] = -1000
    save(tmp_path / "CT/right.nii", whole)
    save(tmp_path / "CT/raised.nii", whole + 1024 + np.eye(24, dtype=np.int16)[0])
    prepare(tmp_path / "out", tmp_path / "CT", hu_offset=-1024.0, crop=False)
    rows = table(tmp_path / "out", tmp_path / "CT")
    assert [row.status for row in rows.values()] == ["accepted", "accepted"]
    assert np.array_equal(stored(tmp_path / "out", rows["right.nii"]), whole)
    assert float(np.median(stored(tmp_path / "out", rows["raised.nii"])[12:])) == pytest.approx(30, abs=10)
    assert rows["right.nii"].note == "in Hounsfield units already: no offset was added"
    assert rows["raised.nii"].note == ""


def test_a_folder_that_cannot_be_opened_is_in_the_manifest(tmp_path, monkeypatch):
    save(tmp_path / "in/p0/T1.nii", mri())
    save(tmp_path / "in/p1/T1.nii", mri(1))
    opened = os.scandir

    def scandir(path):
        if Path(os.fspath(path)).name == "p1":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert prepare(tmp_path / "out", tmp_path / "in").unusable == 1
    rows = table(tmp_path / "out", tmp_path / "in")
    assert (rows["p1"].status, rows["p1"].reason) == (
        "refused",
        "this folder cannot be opened: Permission denied",
    )
    with pytest.raises(InputError, match=r"cannot open the folder .*p1: Permission denied"):
        find_files(Source(str(tmp_path / "in"), "mri"))


def test_an_offset_is_taken_back_and_other_units_are_taken_when_told_so(tmp_path):
    offset = (ct().astype(np.int32) + 1024).astype(np.int16)
    save(tmp_path / "CT/a.nii", offset)
    prepare(tmp_path / "hu", tmp_path / "CT", hu_offset=-1024.0)
    assert np.array_equal(StoredVolume(tmp_path / "hu/ct/a.vxw").read(), ct())
    prepare(tmp_path / "any", tmp_path / "CT", overrides=["ct.require_hu=false"])
    assert np.array_equal(StoredVolume(tmp_path / "any/ct/a.vxw").read(), offset)


def structured(shape):
    return np.zeros(shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (structured(SHAPE), "RGB values"),
        (mri().astype(np.complex64), "complex values"),
        (np.zeros(SHAPE, np.int16), "every value is 0"),
        (np.full(SHAPE, np.nan, np.float32), "holds no image: no value is a number"),
        (np.full(SHAPE, np.inf, np.float32), "holds no image: "),
        (np.full((1, 1, 1), 7.0, np.float32), "too small"),
        (mri(shape=(40, 40)), "too small"),
        (mri(shape=(40, 40, 7)), "each of three axes needs 8 voxels, got shape (40, 40, 7)"),
        (mri(shape=(*SHAPE, 2)), "4 axes"),
        (mri(shape=(*SHAPE, 1, 2)), "5 axes"),
    ],
    ids=["rgb", "complex", "zero", "nan", "inf", "scalar", "flat", "thin", "4D", "5D"],
)
@pytest.mark.parametrize("modality", ["mri", "ct"])
def test_what_is_no_volume_is_refused_with_the_reason(tmp_path, array, reason, modality):
    save(tmp_path / "in/good.nii", ct())
    save(tmp_path / "in/bad.nii", array)
    outcome = prepare(tmp_path / "out", tmp_path / "in", modality=modality)
    row = table(tmp_path / "out", tmp_path / "in")["bad.nii"]
    assert (row.status, row.damaged, outcome.unusable) == ("refused", False, 0)
    assert reason in row.reason


def test_what_is_too_small_at_the_spacing_asked_for_is_refused(tmp_path):
    save(tmp_path / "in/a_T1.nii", mri(shape=(30, 30, 30)))
    save(tmp_path / "in/b_T1.nii", mri(shape=(30, 30, 20)))
    prepare(tmp_path / "out", tmp_path / "in", spacing="3.0")
    rows = table(tmp_path / "out", tmp_path / "in")
    assert rows["a_T1.nii"].stored_shape == (11, 11, 11)
    assert rows["b_T1.nii"].reason.startswith("too small at the spacing asked for: shape (11, 11, 7)")


def test_what_is_not_finite_is_replaced_and_counted(tmp_path):
    image, scan = mri(), ct().astype(np.float32)
    for array in (image, scan):
        array[0, 0, :3], array[5, 5, 5] = (np.nan, np.inf, -np.inf), np.nan
    save(tmp_path / "in/a_T1.nii", image)
    save(tmp_path / "in/a_ct.nii", scan)
    prepare(tmp_path / "out", tmp_path / "in", crop=False)
    rows = table(tmp_path / "out", tmp_path / "in")
    assert [row.nonfinite for row in rows.values()] == [4, 4]
    low, high = np.nanmin(scan[np.isfinite(scan)]), np.nanmax(scan[np.isfinite(scan)])
    expected = np.nan_to_num(scan, nan=low, posinf=high, neginf=low)
    assert np.array_equal(stored(tmp_path / "out", rows["a_ct.nii"]), expected)
    assert np.isfinite(stored(tmp_path / "out", rows["a_T1.nii"]).astype(np.float32)).all()


def test_padding_far_below_air_is_raised_to_air(tmp_path):
    padded = ct()
    padded[:3] = -3024
    save(tmp_path / "CT/a.nii", padded)
    prepare(tmp_path / "out", tmp_path / "CT", crop=False)
    assert np.array_equal(StoredVolume(tmp_path / "out/ct/a.vxw").read(), np.maximum(padded, -1024))


@pytest.mark.parametrize("axes", [(), (1,)])
def test_ct_of_three_windows_is_kept(tmp_path, axes):
    windows = np.random.default_rng(0).uniform(0, 1, (*SHAPE, *axes, 3)).astype(np.float32)
    save(tmp_path / "CT/a.nii", windows)
    prepare(tmp_path / "out", tmp_path / "CT", crop=False)
    (row,) = read_manifest(tmp_path / "out" / MANIFEST)
    assert (row.shape, row.stored_shape) == (windows.shape, (*SHAPE, 3))
    assert np.allclose(stored(tmp_path / "out", row).astype(np.float32), windows.reshape(*SHAPE, 3), atol=5e-4)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize(("choice", "number"), [("refuse", 0), ("first", 1), ("all", 3)])
def test_three_time_points_of_a_ct_are_told_from_windows_by_their_values(tmp_path, suffix, choice, number):
    frames = np.stack([ct(seed) for seed in range(3)], axis=-1)
    (tmp_path / "CT").mkdir()
    if suffix == ".nrrd":
        nrrd = pytest.importorskip("nrrd", reason="pynrrd is not installed: pip install 'voxelwave[dicom]'")
        directions = np.vstack([np.eye(3), np.full(3, np.nan)])
        nrrd.write(str(tmp_path / "CT/a.nrrd"), frames, {"space": "RAS", "space directions": directions})
    else:
        save(tmp_path / "CT/a.nii.gz", frames)
    windows = np.random.default_rng(0).uniform(0, 1, (*SHAPE, 3)).astype(np.float32)
    save(tmp_path / "CT/windows.nii.gz", windows)
    prepare(tmp_path / "out", tmp_path / "CT", four_d=choice, crop=False, spacing="native")
    rows = table(tmp_path / "out", tmp_path / "CT")
    assert rows.pop("windows.nii.gz").stored_shape == (*SHAPE, 3)
    if not number:
        assert [row.reason.endswith("with --four-d first or all") for row in rows.values()] == [True]
        return
    assert len(rows) == number
    for frame, row in enumerate(rows.values()):
        assert np.array_equal(stored(tmp_path / "out", row), np.rint(frames[..., frame]))


@pytest.mark.parametrize(("choice", "number"), [("refuse", 0), ("first", 1), ("all", 4)])
def test_files_of_several_volumes_are_refused_or_parted(tmp_path, choice, number):
    several = mri(shape=(*SHAPE, 4))
    save(tmp_path / "in/x_T1.nii", mri(1))
    save(tmp_path / "in/x_bold.nii.gz", several)
    out = tmp_path / "out"
    prepare(out, tmp_path / "in", four_d=choice, crop=False)
    rows = table(out, tmp_path / "in")
    frames = [row for name, row in rows.items() if "bold" in name]
    if not number:
        assert [row.reason[:6] for row in frames] == ["4 axes"]
        return
    assert [Path(row.file).name for row in frames] == [f"x_bold.nii.gz#{frame}" for frame in range(number)]
    assert len({row.output for row in frames}) == number
    assert {row.subject for row in rows.values()} == {"x"}
    for frame, row in enumerate(frames):
        volume = StoredVolume(out / row.output)
        low, high = volume.info.bounds
        assert (low, high) == (0, 1)
        values = volume.read().astype(np.float32)
        relation = np.polyfit(values.ravel(), several[..., frame].ravel(), 1)
        assert np.allclose(np.polyval(relation, values), several[..., frame], atol=2)
    before = (out / MANIFEST).read_bytes()
    prepare(out, tmp_path / "in", four_d=choice, crop=False)
    assert (out / MANIFEST).read_bytes() == before


# Damage


def damage(folder):
    """Write one file of each kind of damage, and return what its reason says."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = save(folder / "a_T1.nii.gz", mri()).read_bytes()
    (folder / "cut_T1.nii.gz").write_bytes(whole[: len(whole) * 6 // 10])
    (folder / "short_T1.nii").write_bytes(gzip.decompress(whole)[:5000])
    (folder / "page_T1.nii").write_bytes(b"<!DOCTYPE html><html>404</html>" * 40)
    (folder / "lfs_T1.nii.gz").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (folder / "noise_T1.nii").write_bytes(np.random.default_rng(0).bytes(4000))
    (folder / "empty_T1.nii.gz").write_bytes(b"")
    (folder / "gone_T1.nii.gz").symlink_to(folder / "nowhere")
    return {
        "cut_T1.nii.gz": "cut off",
        "short_T1.nii": "unreadable",
        "page_T1.nii": "a web page",
        "lfs_T1.nii.gz": "a Git-LFS pointer",
        "noise_T1.nii": "not a NIfTI",
        "empty_T1.nii.gz": "",
        "gone_T1.nii.gz": "no such file",
    }


def test_damaged_files_are_in_the_manifest_and_the_run_goes_on(tmp_path):
    reasons, said = damage(tmp_path / "in"), io.StringIO()
    out = tmp_path / "out"
    for _ in range(2):
        outcome = prepare(out, tmp_path / "in", said=said)
        rows = table(out, tmp_path / "in")
        assert rows.pop("a_T1.nii.gz").status == "accepted"
        assert set(rows) == set(reasons)
        for name, row in rows.items():
            assert (row.status, row.damaged) == ("refused", True)
            assert reasons[name] in row.reason
        assert outcome.unusable == len(reasons)
        assert "; 7 refused, 7 of them because they cannot be read" in said.getvalue().splitlines()[-3]


@pytest.mark.parametrize("error", [ValueError("odd\nheader"), RuntimeError("no kernel"), MemoryError()])
def test_what_nobody_foresaw_is_a_damaged_file_and_the_run_goes_on(tmp_path, monkeypatch, error):
    def fail_at_b(scan, *arguments):
        if scan.path.name == "b_T1.nii":
            raise error
        return preparing(scan, *arguments)

    preparing = prepare_work.prepare
    monkeypatch.setattr(prepare_work, "prepare", fail_at_b)
    for number, name in enumerate("abc"):
        save(tmp_path / f"in/{name}_T1.nii", mri(number))
    assert prepare(tmp_path / "out", tmp_path / "in").unusable == 1
    rows = table(tmp_path / "out", tmp_path / "in")
    assert [row.status for row in rows.values()] == ["accepted", "refused", "accepted"]
    assert rows["b_T1.nii"].reason.startswith(f"cannot be prepared: {type(error).__name__}: ")
    assert "\n" not in rows["b_T1.nii"].reason


def test_what_nobody_foresaw_of_a_label_map_leaves_its_image(tmp_path, monkeypatch):
    def fail(*arguments, **more):
        raise MemoryError

    monkeypatch.setattr(prepare_work, "onto_grid", fail)
    save(tmp_path / "in/a_T1.nii", mri())
    save(tmp_path / "in/a_seg.nii", mask())
    assert prepare(tmp_path / "out", tmp_path / "in").unusable == 1
    rows = table(tmp_path / "out", tmp_path / "in")
    assert [row.status for row in rows.values()] == ["accepted", "refused"]


def test_strict_ends_at_the_first_damaged_file_each_time(tmp_path):
    damage(tmp_path / "in")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"cut_T1\.nii\.gz: cut off.* \(--strict; what is done before it is kept\)"
        ):
            prepare(tmp_path / "out", tmp_path / "in", strict=True)
    assert (tmp_path / "out/mri/a_T1.vxw").exists()
    assert prepare(tmp_path / "out", tmp_path / "in").complete


# Label maps


def test_label_maps_lie_on_the_grid_of_their_image_and_are_no_source_of_training(tmp_path):
    affine = np.array([[0, -1.5, 0, 40], [1.2, 0, 0, -30], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    image = np.zeros((40, 30, 20), np.float32)
    image[12:25, 9:20, 5:13] = 100 + mri(0, (13, 11, 8))
    labels = (image > 0).astype(np.uint8) * 3
    save(tmp_path / "in/a_T1.nii.gz", image, affine)
    save(tmp_path / "in/a_seg.mgz", labels, affine)
    save(tmp_path / "in/labels/by_values.nii", labels, affine)
    out = tmp_path / "out"
    prepare(out, tmp_path / "in")
    rows = table(out, tmp_path / "in")
    paired = rows["a_seg.mgz > a_T1.nii.gz"]
    assert (paired.status, paired.modality, paired.subject) == ("accepted", LABEL, "a")
    volume, label = StoredVolume(out / rows["a_T1.nii.gz"].output), StoredVolume(out / paired.output)
    assert label.grid == volume.grid != image.shape
    assert label.dtype == "uint8"
    assert np.allclose(label.affine, volume.affine)
    bright = volume.read() > volume.read().min()
    assert np.array_equal(label.read(), bright * 3)
    alone = rows["labels/by_values.nii"]
    assert (alone.status, alone.modality, alone.output) == ("refused", LABEL, "")
    assert (
        alone.reason == "a label map by its content: 2 whole numbers from 0 to 3, with no image of its grid and subject"
    )
    assert [file.path for file in find_files(Source(str(out), ""))] == [out / "mri/a_T1.vxw"]


def test_without_labels_no_label_map_is_stored(tmp_path):
    save(tmp_path / "in/a_T1.nii", mri())
    save(tmp_path / "in/a_seg.nii", mask())
    prepare(tmp_path / "out", tmp_path / "in", labels=False)
    assert table(tmp_path / "out", tmp_path / "in")["a_seg.nii"].reason == "a label map by its name ('seg')"
    assert not (tmp_path / "out/labels").exists()
    prepare(tmp_path / "out", tmp_path / "in")
    assert table(tmp_path / "out", tmp_path / "in")["a_seg.nii > a_T1.nii"].status == "accepted"


def test_a_label_map_of_another_grid_or_of_another_subject_has_no_image(tmp_path):
    moved = np.eye(4)
    moved[0, 3] = 3
    save(tmp_path / "in/a_T1.nii", mri())
    save(tmp_path / "in/a_seg.nii", mask(), moved)
    save(tmp_path / "in/a_mask.nii", mask(shape=(12, 13, 15)))
    save(tmp_path / "in/b_seg.nii", mask())
    prepare(tmp_path / "out", tmp_path / "in")
    rows = table(tmp_path / "out", tmp_path / "in")
    assert [name for name, row in rows.items() if row.status == "accepted"] == ["a_T1.nii"]
    assert all(
        row.reason.endswith("with no image of its grid and subject") for name, row in rows.items() if name != "a_T1.nii"
    )


def test_a_label_map_is_not_given_to_the_next_person_of_the_same_grid(tmp_path):
    save(tmp_path / "in/study_001_T1.nii", mri())
    save(tmp_path / "in/study_001_seg.nii", mask())
    save(tmp_path / "in/study_002_seg.nii", mask(1))
    save(tmp_path / "in/sub-1/ses-1/anat/sub-1_ses-1_T1w.nii", mri(1))
    save(tmp_path / "in/sub-1/ses-2/anat/sub-1_ses-2_T1w.nii", mri(2))
    save(tmp_path / "in/masks/sub-1/ses-2/sub-1_ses-2_mask.nii", mask(2))
    save(tmp_path / "in/masks/sub-1/ses-3/sub-1_ses-3_mask.nii", mask(3))
    save(tmp_path / "in/masks/sub-1/sub-1_mask.nii", mask(4))
    prepare(tmp_path / "out", tmp_path / "in")
    rows = table(tmp_path / "out", tmp_path / "in")
    one, two = (f"sub-1/ses-{number}/anat/sub-1_ses-{number}_T1w.nii" for number in (1, 2))
    assert {name for name, row in rows.items() if row.modality == LABEL} == {
        "study_001_seg.nii > study_001_T1.nii",
        "study_002_seg.nii",
        f"masks/sub-1/ses-2/sub-1_ses-2_mask.nii > {two}",
        "masks/sub-1/ses-3/sub-1_ses-3_mask.nii",
        f"masks/sub-1/sub-1_mask.nii > {one}",
        f"masks/sub-1/sub-1_mask.nii > {two}",
    }


def test_a_grid_is_the_same_when_a_tool_rounds_its_affine(tmp_path):
    exact = np.diag([0.625, 1.875, 0.375, 1])
    exact[:3, 3] = -90.125, -127.375, 72.625
    rounded = exact + 1e-5 * np.random.default_rng(0).choice([-1, 1], (4, 4)) * (np.arange(4) < 3)[:, None]
    save(tmp_path / "in/a_T1.nii", mri(), exact)
    save(tmp_path / "in/a_seg.nii", mask(), rounded)
    prepare(tmp_path / "out", tmp_path / "in")
    assert table(tmp_path / "out", tmp_path / "in")["a_seg.nii > a_T1.nii"].status == "accepted"


def test_label_maps_of_one_name_do_not_overwrite_each_other(tmp_path):
    save(tmp_path / "in/a_T1.nii", mri())
    for number, folder in enumerate(("expert1", "expert2", "expert3")):
        save(tmp_path / f"in/{folder}/a_seg.nii", mask(number))
    out = tmp_path / "out"
    prepare(out, tmp_path / "in", crop=False)
    rows = table(out, tmp_path / "in")
    for number, folder in enumerate(("expert1", "expert2", "expert3")):
        assert np.array_equal(stored(out, rows[f"{folder}/a_seg.nii > a_T1.nii"]), mask(number))


def test_a_label_map_of_several_images_has_a_row_for_each(tmp_path):
    for number, name in enumerate(("T1", "FLAIR")):
        save(tmp_path / f"in/a_{name}.nii", mri(number))
    save(tmp_path / "in/a_lesion.nii", mask())
    save(tmp_path / "in/a_T1_brainmask_seg.nii", mask(1))
    out = tmp_path / "out"
    prepare(out, tmp_path / "in", crop=False)
    assert {name for name, row in table(out, tmp_path / "in").items() if row.modality == LABEL} == {
        "a_lesion.nii > a_FLAIR.nii",
        "a_lesion.nii > a_T1.nii",
        "a_T1_brainmask_seg.nii > a_T1.nii",
    }


def test_sources_of_equal_names_overwrite_nothing_and_keep_their_label_maps(tmp_path):
    for number, source in enumerate(("one", "two")):
        save(tmp_path / source / "sub-01/anat/sub-01_T1w.nii", mri(number))
        save(tmp_path / source / "sub-01/anat/sub-01_mask.nii", mask(number))
        save(tmp_path / source / "x_T1.nii", mri(10 + number))
        save(tmp_path / source / "x_T1_seg.nii", mask(10 + number))
    out = tmp_path / "out"
    prepare(out, tmp_path / "one", tmp_path / "two", crop=False)
    rows = table(out, tmp_path)
    assert len(rows) == 8
    assert len({row.output for row in rows.values()}) == 8
    for number, source in enumerate(("one", "two")):
        for image, label, seed in (
            ("sub-01/anat/sub-01_T1w.nii", "sub-01/anat/sub-01_mask.nii", 0),
            ("x_T1.nii", "x_T1_seg.nii", 10),
        ):
            volume = stored(out, rows[f"{source}/{image}"]).astype(np.float32)
            assert np.corrcoef(volume.ravel(), mri(seed + number).ravel())[0, 1] > 0.999
            paired = rows[f"{source}/{label} > {source}/{image}"]
            assert np.array_equal(stored(out, paired), mask(seed + number))


# Duplicates and splits


def test_the_same_content_is_taken_once_whatever_its_format_and_order_of_axes(tmp_path):
    affine = np.diag([1.0, 1.5, 2.0, 1])
    affine[:3, 3] = -20, 30, 4
    image = nibabel.Nifti1Image(np.rint(mri()).astype(np.int16), affine)
    (tmp_path / "in").mkdir()
    turned = image.as_reoriented(nibabel.orientations.axcodes2ornt("PIR"))
    nibabel.save(image, tmp_path / "in/b_T1.nii")
    nibabel.save(image, tmp_path / "in/c_T1.nii.gz")
    nibabel.save(turned, tmp_path / "in/d_T1.nii.gz")
    save(tmp_path / "in/e_T1.mgz", image.get_fdata().astype(np.float32), affine)
    save(tmp_path / "in/f_T1.nii", np.flip(np.asarray(image.dataobj), 0).copy(), affine)
    out = tmp_path / "out"
    prepare(out, tmp_path / "in")
    rows = table(out, tmp_path / "in")
    first = f"the same content as {tmp_path}/in/b_T1.nii"
    assert [row.reason for row in rows.values()] == ["", first, first, first, ""]
    assert sorted(path.name for path in out.rglob("*.vxw")) == ["b_T1.vxw", "f_T1.vxw"]
    assert sorted(path.name for path in out.rglob("*.jpg")) == ["b_T1.jpg", "f_T1.jpg"]


def test_a_copy_found_later_leaves_what_a_single_call_would(tmp_path):
    scans, out = tmp_path / "in", tmp_path / "out"
    for name in ("b_T1.nii", "c_T1.nii"):
        save(scans / name, mri())
    save(scans / "b_seg.nii", mask())
    prepare(out, scans)
    assert table(out, scans)["b_seg.nii > b_T1.nii"].accepted
    save(scans / "a_T1.nii", mri())
    for _ in range(2):
        prepare(out, scans)
        reasons = {name: row.reason for name, row in table(out, scans).items()}
        assert reasons == {
            "a_T1.nii": "",
            "b_T1.nii": f"the same content as {scans}/a_T1.nii",
            "c_T1.nii": f"the same content as {scans}/a_T1.nii",
            "b_seg.nii": "a label map by its name ('seg'), with no image of its grid and subject",
        }
        assert [path.relative_to(out).as_posix() for path in out.rglob("*.vxw")] == ["mri/a_T1.vxw"]


def test_a_copy_is_taken_once_its_original_is_another(tmp_path):
    one, two, out = tmp_path / "one", tmp_path / "two", tmp_path / "out"
    save(one / "a_T1.nii", mri())
    save(two / "a_T1.nii", mri())
    prepare(out, one, two)
    assert table(out, tmp_path)["two/a_T1.nii"].reason == f"the same content as {one}/a_T1.nii"
    save(one / "a_T1.nii", mri(1))
    prepare(out, one)
    prepare(out, one, two)
    assert [row.status for row in table(out, tmp_path).values()] == ["accepted", "accepted"]


def test_a_split_keeps_all_scans_of_a_subject_together(tmp_path):
    scans, out = tmp_path / "in", tmp_path / "out"
    for number in range(12):
        save(scans / f"MRI_T1/p{number:02d}_T1.nii", mri(number))
        save(scans / f"MRI_T2/p{number:02d}_T2.nii", mri(100 + number))
        save(scans / f"CT/p{number:02d}.nii", ct(number))
        save(scans / f"labels/p{number:02d}_seg.nii", mask(number))
    prepare(out, scans, holdout=0.4, crop=False)
    rows = table(out, scans)
    assert len(rows) == 12 * 4
    splits = {f"p{number:02d}": split_of(f"p{number:02d}", holdout=0.4) for number in range(12)}
    assert {row.subject: row.split for row in rows.values()} == splits
    assert all(row.split == splits[row.subject] for row in rows.values())
    for split in ("train", "test"):
        files = find_files(Source(str(out), "mri", split=split))
        assert {file.path.name[:3] for file in files} == {name for name, of in splits.items() if of == split}


def test_a_name_that_several_persons_share_is_warned_of_where_some_are_held_out(tmp_path):
    for number in range(3):
        for name in ("upper", "lower"):
            save(tmp_path / f"in/patient{number}/{name}_T1.nii", mri(10 * number + len(name) * (name == "upper")))
    warned = (
        "warning: scans of subject 'lower' lie in 3 folders, such as patient0 and patient1: if these are of several"
    )
    for holdout in (0.5, None):
        said = io.StringIO()
        prepare(tmp_path / f"out{holdout}", tmp_path / "in", said=said, holdout=holdout)
        assert (warned in said.getvalue()) == (holdout is not None)
    said = io.StringIO()
    prepare(tmp_path / "told", tmp_path / "in", said=said, holdout=0.5, subject=r"(patient\d)")
    assert "warning" not in said.getvalue()
    assert {row.subject for row in table(tmp_path / "told", tmp_path / "in").values()} == {
        f"patient{number}" for number in range(3)
    }


def test_a_later_call_keeps_the_split_unless_it_is_told_another(tmp_path):
    scans, out = tmp_path / "in", tmp_path / "out"
    for number in range(10):
        save(scans / f"p{number}_T1.nii", mri(number))

    def tested():
        return {row.subject for row in read_manifest(out / MANIFEST) if row.split == "test"}

    def expected(holdout):
        subjects = {row.subject for row in read_manifest(out / MANIFEST)}
        return {subject for subject in subjects if split_of(subject, holdout=holdout) == "test"}

    prepare(out, scans, holdout=0.3)
    assert tested() == expected(0.3) != set()
    for number in range(10, 20):
        save(scans / f"p{number}_T1.nii", mri(number))
    prepare(out, scans)
    assert tested() == expected(0.3)
    prepare(out, scans, holdout=0.6)
    assert tested() == expected(0.6) > expected(0.3)
    prepare(out, scans, holdout=0.0)
    assert tested() == set()


# Names


def test_odd_names_are_prepared_like_others(tmp_path):
    scans, out = tmp_path / "in", tmp_path / "out"
    names = ['a,"b"_T1.nii', "line\nbreak_T1.nii", "carriage\rreturn_T1.nii", "größe 雪_T1.nii", "[red]x_T1.nii"]
    for number, name in enumerate([*names, os.fsdecode(b"M\xfcller_T1.nii"), f"{'x' * 240}_T1.nii"]):
        save(scans / f"plain{number}.nii", mri(number)).rename(scans / name)
    for _ in range(2):
        prepare(out, scans)
        rows = table(out, scans)
        assert [row.reason for row in rows.values()] == [""] * 7
        assert {*map(printable, names), "M\\udcfcller_T1.nii"} < set(rows)
        assert len(find_files(Source(str(out), "mri"))) == 7
        assert all(file.path.is_file() for file in find_files(Source(str(out), "mri")))


# The command


def command(*arguments, folder=None):
    return voxelwave("prepare", *arguments, "--workers", 1, folder=folder)


def test_the_exit_code_tells_how_it_ended(tmp_path):
    save(tmp_path / "good/a_T1.nii", mri())
    damage(tmp_path / "bad")
    ended = command(tmp_path / "good", tmp_path / "out")
    assert ended.code == 0
    assert "0 refused, 0 of them because they cannot be read" in ended.out
    ended = command(tmp_path / "good", tmp_path / "bad", tmp_path / "out")
    assert ended.code == 1
    assert "7 of them because they cannot be read" in ended.out.splitlines()[-3]
    ended = command(tmp_path / "bad", tmp_path / "out2", "--strict")
    assert ended.code == 2
    assert "cut_T1.nii.gz: cut off" in ended.err.splitlines()[-1]


def test_a_call_that_was_stopped_ends_with_130(tmp_path, monkeypatch):
    save(tmp_path / "in/a_T1.nii", mri())
    monkeypatch.setattr(prepare_recipe, "stop_on_signal", lambda: nullcontext(SimpleNamespace(asked=True)))
    ended = command(tmp_path / "in", tmp_path / "out")
    assert ended.code == 130
    assert "stopped, the same command goes on; so far: no volume" in ended.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere", "out"], "'nowhere' does not exist"),
        (["empty", "out"], "'empty' holds no scan"),
        (["good", "good/a_T1.nii"], "is a file: give a folder"),
        (["good", "good"], "is not empty, and no prepared data set"),
        (["good", "out", "--spacing", "1,2"], "--spacing is a number of mm"),
        (["good", "out", "--spacing", "0"], "--spacing is a number of mm"),
        (["good", "out", "--spacing", "fine"], "got 'fine'"),
        (["good", "out", "--modality", "pet"], "pet"),
        (["good", "out", "--four-d", "some"], "--four-d is one of refuse, first, all"),
        (["good", "out", "--holdout", "1"], "--holdout is a share"),
        (["good", "out", "--subject", "("], "is not a regular expression"),
        (["good", "out", "--set", "mri.percentile=[1,99]"], "percentile"),
        (["good", "out", "--set", "mri.percentiles=[99,1]"], "percentiles rise"),
        (["good", "out", "--set", "percentiles"], "--set takes"),
        (["good", "out", "--set", "mri=1"], "--set takes MODALITY.SETTING=VALUE"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, reason):
    save(tmp_path / "good/a_T1.nii", mri())
    (tmp_path / "empty").mkdir()
    assert reason in error_of(command(*arguments, folder=tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_data_set_within_its_source_does_not_take_itself(tmp_path):
    save(tmp_path / "a_T1.nii", mri())
    for _ in range(2):
        prepare(tmp_path / "prepared", tmp_path)
        assert list(table(tmp_path / "prepared", tmp_path)) == ["a_T1.nii"]


def test_a_file_may_be_a_source_and_a_folder_be_named_twice(tmp_path):
    path = save(tmp_path / "in/a_T1.nii", mri())
    save(tmp_path / "in/b_T1.nii", mri(1))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    prepare(tmp_path / "out", path)
    assert list(table(tmp_path / "out", tmp_path / "in")) == ["a_T1.nii"]
    prepare(tmp_path / "out", tmp_path / "in", path, tmp_path / "in/../in", tmp_path / "link")
    assert list(table(tmp_path / "out", tmp_path / "in")) == ["a_T1.nii", "b_T1.nii"]
