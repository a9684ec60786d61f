"""The table names every file and what is wrong with it."""

from __future__ import annotations

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


def test_all_real_files_get_a_row(real_data):
    problems, rows = table(real_data / "volumes")
    assert len(rows) == 44
    assert problems == 23
    # A phase image is of the modality that its name tells, and of none that can be used.
    assert rows["odd/phase_scl.nii.gz"][-1].startswith("neither MRI nor CT by 'phase' in the name 'phase_scl'")
