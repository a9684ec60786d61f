"""The table names every file and what is wrong with it."""

from __future__ import annotations

import csv
import io

import nibabel
import numpy as np
import pytest

from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.inspect.run import inspect


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.diag([2, 1, 1, 1])), path)


def table(path, **options):
    """Return the number of problems and the cells of every row, by file."""
    output = io.StringIO()
    problems = inspect(str(path), console=Console(file=output, width=400), **options)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines()]
    return problems, {row[0]: row[1:] for row in rows if row}


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    write(tmp_path / "MRI_T1/a.nii.gz", random.uniform(0, 900, (9, 10, 11)))
    write(tmp_path / "x/hounsfield.nii", random.uniform(-1000, 900, (9, 10, 11)))
    write(tmp_path / "x/windows.nii", random.uniform(0, 1, (9, 10, 11, 1, 3)))
    write(tmp_path / "x/unknown.nii", random.uniform(0, 900, (9, 10, 11)))
    write(tmp_path / "CT/wrong.nii", random.uniform(0, 900, (9, 10, 11)))
    (tmp_path / "x/text.nii").write_text("no volume")
    return tmp_path


def test_modalities_are_told_by_words_then_by_shape_and_values(folder):
    problems, rows = table(folder)
    assert problems == 2
    assert {name: row[0] for name, row in rows.items()} == {
        "MRI_T1/a.nii.gz": "mri",
        "x/hounsfield.nii": "ct",
        "x/windows.nii": "ct",
        "x/unknown.nii": "?",
        "CT/wrong.nii": "ct",
        "x/text.nii": "?",
    }
    assert rows["x/windows.nii"][1:4] == ["9×10×11×1×3", "2 1 1", "RAS"]
    assert "not in Hounsfield units" in rows["CT/wrong.nii"][-1]


def test_what_prepare_refuses_for_its_name_is_a_problem_here_too(folder):
    hounsfield = np.random.default_rng(1).uniform(-1500, 900, (9, 10, 11))
    write(folder / "x/wrong_T2.nii", hounsfield)
    write(folder / "x/brain_pet.nii", np.abs(hounsfield))
    problems, rows = table(folder)
    assert problems == 4
    contradicted = "taken for MRI by 't2' in the name 'wrong_T2', but its values look like Hounsfield units"
    assert rows["x/wrong_T2.nii"][0] == "mri"
    assert rows["x/wrong_T2.nii"][-1] == f"{contradicted}: say which with --modality"
    assert rows["x/brain_pet.nii"][0] == "?"
    assert rows["x/brain_pet.nii"][-1].startswith("neither MRI nor CT by 'pet' in the name 'brain_pet'")
    assert table(folder / "x/wrong_T2.nii", modality="mri")[0] == 0


def test_a_list_says_what_its_files_are(folder):
    (folder / "list.csv").write_text("path,modality\nx/unknown.nii,mri\nx/hounsfield.nii,\n")
    problems, rows = table(folder / "list.csv")
    assert problems == 0
    assert {name: row[0] for name, row in rows.items()} == {"x/unknown.nii": "mri", "x/hounsfield.nii": "ct"}


def test_a_modality_given_decides(folder):
    assert table(folder / "x/unknown.nii", modality="mri")[0] == 0
    assert table(folder / "x/unknown.nii", modality="ct")[0] == 1


@pytest.mark.parametrize(
    ("path", "options", "reason"),
    [
        ("none", {}, "does not exist"),
        ("x/*.mgz", {}, "matches no"),
        ("x", {"modality": "pet"}, "known: ct, mri"),
    ],
)
def test_nothing_to_inspect_is_said(folder, path, options, reason):
    with pytest.raises(InputError, match=reason):
        inspect(f"{folder}/{path}", **options)


# What is wrong with real files; nothing is with the others.
UNITS = "CT is not in Hounsfield units: air is -1000, but the values are"
PROBLEMS = {
    "ct/body_ct_small_seg.nii.gz": "a label map by its name ('seg')",
    "ct/sccsf.nii.gz": f"{UNITS} 0 to 1",
    "ct/scct_cormack.nii": f"{UNITS} 0 to 3794",
    "ct/scgrey.nii.gz": f"{UNITS} 0 to 1",
    "ct/scwhite.nii.gz": f"{UNITS} 0 to 1",
    "ct/slicer_ct_head_lowres.nii.gz": f"{UNITS} 0 to 3926",
    "mr/gbm1_tumour.nii.gz": "a label map by its name ('tumour')",
    "mr/mne_ecog_aparc+aseg.mgz": "a label map by its name ('aseg')",
    "mr/ms07_lesions.nii.gz": "a label map by its name ('lesions')",
    "mr/seg3d_brain_mask.nii.gz": "a label map by its name ('mask')",
    "mr/seg3d_skull_mask.nii.gz": "a label map by its name ('mask')",
    "mr/stroke_scribble.nii.gz": "a label map by its name ('scribble')",
    "odd/bigendian_4d.nii": "too small: each of three axes needs 8 voxels, got shape (17, 21, 3, 20)",
    "odd/complex64.nii.gz": "its voxels are complex values",
    "odd/epi_4d_int16.nii.gz": "4 axes: one volume a file is needed, got shape (128, 96, 24, 2)",
    "odd/html_page.nii": "a web page, not a volume",
    "odd/lfs_pointer.nii.gz": "a Git-LFS pointer, not the file itself",
    "odd/nifti2_4d.nii.gz": "4 axes: one volume a file is needed, got shape (32, 20, 12, 2)",
    "odd/not_nifti.nii": "not a NIfTI or MGH file",
    # A phase image is of the modality that its name tells, and of none that can be used.
    "odd/phase_scl.nii.gz": "neither MRI nor CT by 'phase' in the name 'phase_scl'",
    "odd/rgb24.nii.gz": "its voxels are RGB values",
    "odd/truncated_gzip.nii.gz": "cut off: the compressed data ends too early",
    "odd/zero_dim5.nii.gz": "CT holds no image: every value is 0",
}
# Of a folder whose name says nothing; an echo-planar image is MRI by its name, and three windows are CT by their shape.
ODD = {"odd/epi_4d_int16.nii.gz": "mri", "odd/zero_dim5.nii.gz": "ct"}


@pytest.fixture(scope="module")
def inspected(real_data):
    return table(real_data / "volumes")


@pytest.fixture(scope="module")
def known(real_data):
    """What is known of each real file, from where the files were collected."""
    with (real_data / "volumes/MANIFEST.tsv").open(newline="") as stream:
        return {line["file"]: line for line in csv.DictReader(stream, delimiter="\t")}


def test_every_real_file_has_a_row_with_its_modality(inspected, known):
    _, rows = inspected
    assert rows.keys() == known.keys()
    of_folder = {"ct": "ct", "mr": "mri", "odd": "?"}
    for name, (modality, *_) in rows.items():
        assert modality == ODD.get(name, of_folder[name.partition("/")[0]]), name


def test_what_is_wrong_with_a_real_file_is_said_and_counted_and_of_the_others_nothing(inspected):
    problems, rows = inspected
    assert problems == len(PROBLEMS)
    for name, (*_, problem) in rows.items():
        assert problem.startswith(PROBLEMS[name]) if name in PROBLEMS else problem == "", name


def test_grid_and_values_of_real_files_are_those_that_are_known(inspected, known):
    _, rows = inspected
    for name, (_, shape, spacing, axes, values, _) in rows.items():
        of = known[name]
        if of["axcodes"]:
            assert (shape, axes) == (of["shape"].replace("x", "×"), of["axcodes"]), name
            assert spacing.split() == of["zooms"].split("x")[:3], name
        if values:
            bounds = [float(value) for value in values.split(" to ")]
            assert bounds == pytest.approx([float(value) for value in of["range"].split("..")], rel=1e-3), name
        else:
            assert name in PROBLEMS


def test_a_glob_tells_as_its_folder_does_and_names_files_below_it(folder):
    write(folder / "mri/sub01/scan.nii", np.random.default_rng(0).uniform(0, 900, (9, 10, 11)))
    write(folder / "mri/sub02/scan.nii", np.random.default_rng(1).uniform(0, 900, (9, 10, 11)))
    _, by_folder = table(folder / "mri")
    _, by_glob = table(folder / "mri/**/*.nii")
    assert by_folder == by_glob
    assert {name: row[0] for name, row in by_glob.items() if name != "file"} == {
        "sub01/scan.nii": "mri",
        "sub02/scan.nii": "mri",
    }
