import nibabel as nib
import numpy as np
import pytest
import torch

from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.images import find_images
from voxelwave.data.modalities.mri import MRI
from voxelwave.data.scaled import read_scaled
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation


@pytest.fixture
def table(heads, tmp_path):
    """A list of two heads, one of them with all that a list can say."""
    names = ["head_0000_T1", "head_0001_T2"]
    lines = ["image,label,subject,modality,split,lesion,grade"]
    lines.append(f"{heads}/mri/{names[0]}.nii.gz,{heads}/labels/{names[0]}_labels.nii.gz,anna,MRI,train,1,2")
    lines.append(f"{heads}/mri/{names[1]}.nii.gz,,,mri,,0,")
    path = tmp_path / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_list_says_what_each_case_is(table):
    first, second = find_cases(table)
    assert (first.name, first.subject, first.modality, first.split) == ("head_0000_T1", "anna", "mri", "train")
    assert first.label.name == "head_0000_T1_labels.nii.gz"
    assert first.targets == {"lesion": 1, "grade": 2}
    assert (second.subject, second.label, second.split) == ("head_0001_T2", None, "")
    assert second.targets == {"lesion": 0}


def test_the_case_and_blanks_of_a_column_mean_nothing(table):
    text = table.read_text()
    expected = find_cases(table)
    table.write_text(text.replace("image,label,subject,modality,split", "Image, label, Subject,MODALITY ,Split"))
    assert find_cases(table) == expected
    # Beside a subject, other numbers of patients are what they are said to be.
    table.write_text(text.replace("lesion,grade", "patient,Grade"))
    assert find_cases(table)[0].targets == {"patient": 1, "Grade": 2}


def test_the_session_is_what_the_list_or_the_path_says(table, heads, tmp_path):
    assert {case.session for case in find_cases(table)} == {""}
    folder = tmp_path / "sub-01" / "ses-02"
    folder.mkdir(parents=True)
    (folder / "sub-01_ses-02_T1w.nii.gz").symlink_to(heads / "mri" / "head_0000_T1.nii.gz")
    row = "sub-01/ses-02/sub-01_ses-02_T1w.nii.gz,mri"
    for columns, cell, session in (("image,modality", "", "ses-02"), ("image,modality,Session", ",first", "first")):
        table.write_text(f"{columns}\n{row}{cell}\n")
        (case,) = find_cases(table)
        assert (case.session, case.targets) == (session, {})


def test_whole_numbers_may_be_written_as_tables_with_gaps_write_them(table):
    table.write_text(table.read_text().replace(",1,2", ",1.0,2.0"))
    assert find_cases(table)[0].targets == {"lesion": 1, "grade": 2}


def test_generated_heads_come_with_their_cases(heads):
    mri, ct = find_cases(heads, modality="mri"), find_cases(heads, modality="ct")
    assert [len(mri), len(ct)] == [5, 3]
    assert [case.targets["contrast"] for case in mri] == [0, 1, 2, 3, 0]
    for case in (*mri, *ct):
        values = np.unique(np.asarray(nib.load(case.label).dataobj))
        assert case.targets["lesion"] == int((values >= 15).any())
        assert case.targets["aneurysm"] == int((values == 14).any())
    assert len({case.subject for case in (*mri, *ct)}) == 8


def test_a_prepared_folder_gives_its_images_with_their_label_maps(heads, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for number in (0, 4):
        name = f"head_{number:04d}_T1"
        (scans / f"{name}.nii.gz").symlink_to(heads / "mri" / f"{name}.nii.gz")
        (scans / f"{name}_labels.nii.gz").symlink_to(heads / "labels" / f"{name}_labels.nii.gz")
    how = preparation(modality="mri", spacing="1.0", crop=False)
    Preparer(tmp_path / "prepared", how, workers=1)([str(scans)])
    cases = find_cases(tmp_path / "prepared")
    assert len(cases) == 2
    assert all(case.label is not None for case in cases)
    raw = read_scaled(scans / "head_0000_T1.nii.gz", MRI())
    stored = read_scaled(cases[0].image, MRI())
    torch.testing.assert_close(stored.volume, raw.volume, rtol=0, atol=1e-3)
    np.testing.assert_allclose(stored.affine, raw.affine)


def test_resampling_goes_before_scaling(heads):
    scaled = read_scaled(heads / "mri" / "head_0000_T1.nii.gz", MRI(), spacing_mm=2.0)
    assert scaled.volume.shape == (1, 16, 16, 16)
    np.testing.assert_allclose(np.abs(np.diag(scaled.affine)[:3]), 2.0)
    with pytest.raises(UnusableVolume, match="a label map by its name"):
        read_scaled(heads / "labels" / "head_0000_T1_labels.nii.gz", MRI())


def test_a_target_is_whole_however_a_program_writes_it_and_blank_rows_are_none(tmp_path):
    (tmp_path / "here.nii").touch()
    (tmp_path / "there.nii").touch()
    (tmp_path / "cases.csv").write_text("image,modality,a,b\nhere.nii,mri, 1.0,-3\nthere.nii,mri,2.,\n,,,\n , ,,\n")
    assert [case.targets for case in find_cases(tmp_path)] == [{"a": 1, "b": -3}, {"a": 2}]


def test_columns_that_nobody_asks_for_may_hold_anything(tmp_path):
    (tmp_path / "here.nii").touch()
    (tmp_path / "cases.csv").write_text(
        "image,modality,SeriesInstanceUID,sex,age,fold,a\nhere.nii,mri,1.2.3,F,45,2,1\n"
    )
    (case,) = find_cases(tmp_path, targets=["a"])
    assert (case.targets, case.fold) == ({"age": 45, "a": 1}, 2)
    assert find_cases(tmp_path, targets=())[0].targets == case.targets
    for targets in (None, ["sex", "a"]):
        with pytest.raises(ValueError, match=r"column '(sex|SeriesInstanceUID)': a target is a whole number"):
            find_cases(tmp_path, targets=targets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.nii.gz\n", "needs a column 'image'"),
        ("image,modality\nnowhere.nii.gz,mri\n", "line 2: no file '.*nowhere.nii.gz'"),
        (f"image,modality\n{'x' * 5000}.nii.gz,mri\n", "line 2: no file '.*x.nii.gz'"),
        ("image,modality\n.,mri\n", "line 2: '.*' is a folder: `voxelwave prepare` reads the DICOM series in it"),
        ("image,modality\n,mri\n", "line 2: the cell 'image' is empty"),
        ("image\nhere.csv\n", "line 2: modality '' is none of ct, mri"),
        ("image,modality\nhere.csv,pet\n", "line 2: modality 'pet' is none of ct, mri"),
        ("image,modality,lesion\nhere.csv,mri,yes\n", "column 'lesion': a target is a whole number.*got 'yes'"),
        ("image,modality,lesion\nhere.csv,mri,1_0\n", "column 'lesion': a target is a whole number.*got '1_0'"),
        (
            "image,modality,accession\nhere.csv,mri,1234567890123456\n",
            "a target is a whole number of at most 15 digits",
        ),
        ("image,modality,fold\nhere.csv,mri,first\n", "line 2: a fold is a whole number.*got 'first'"),
        ("image,modality\nhere.csv,mri,1\n", "line 2: more cells than columns"),
        ("image,modality\nhere.csv,mri\nhere.csv,mri\n", "twice"),
        ("image,modality\n", "holds no case"),
        ("image,Image\na,b\n", "has two columns 'image'"),
        *(
            (f"image,{name}\nhere.csv,1001\n", f"has a column '{name}' and no 'subject': name it 'subject'")
            for name in ("patient", "Patient_ID", "subject_id", "SubjectID", "participant_id", "case number", "pid")
        ),
    ],
)
def test_a_list_that_cannot_be_used_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "here.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        find_cases(path)
    assert "\n" not in str(caught.value)


def test_an_image_is_listed_once_by_whatever_path_or_link(table, heads, tmp_path):
    (tmp_path / "other.nii.gz").symlink_to(heads / "mri" / "head_0001_T2.nii.gz")
    whole = table.read_text()
    for again in (f"{heads}/mri/../mri/head_0001_T2.nii.gz", "other.nii.gz"):
        table.write_text(f"{whole}{again},,,mri,test,0,\n")
        with pytest.raises(ValueError, match="twice; links and other paths count, too"):
            find_cases(table)


def test_a_word_of_label_maps_is_for_prepared_folders(table):
    with pytest.raises(ValueError, match="'seg' is to choose among the label maps of a prepared folder"):
        find_cases(table, label="seg")


def test_a_list_of_cases_is_one_for_every_job_however_it_is_written(table):
    """As R writes it, with capitals, and without modalities, which are told when a scan is read."""
    rows = [line.split(",") for line in table.read_text().splitlines()]
    quoted = [",".join(f'"{cell}"' for cell in [*row[:3], *row[4:]]) for row in rows]
    table.write_text("\n".join([quoted[0].replace("image", "Image"), *quoted[1:]]) + "\n")
    listed = find_images(str(table), None)
    assert [(case.name, case.modality) for case in listed.cases] == [("head_0000_T1", ""), ("head_0001_T2", "")]
    assert {case.modality for case in find_images(str(table), "mri").cases} == {"mri"}
    with pytest.raises(ValueError, match=r"line 2: modality '' is none of ct, mri: name it in a column 'modality'"):
        find_cases(table)


def test_what_is_no_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is neither a list of cases"):
        find_cases(tmp_path)


def test_images_of_one_name_in_different_folders_are_different_cases_and_subjects(tmp_path):
    for folder in ("anna", "bob"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "T1.nii.gz").touch()
    table = tmp_path / "cases.csv"
    table.write_text("image,modality\nanna/T1.nii.gz,mri\nbob/T1.nii.gz,mri\n")
    assert [(case.name, case.subject) for case in find_cases(table)] == [("anna_T1",) * 2, ("bob_T1",) * 2]
