from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from voxelwave.data.modalities.ct import CT
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.synthesize import run as recipe
from voxelwave.jobs.synthesize.run import synthesize
from voxelwave.physics.heads3d import Tissue


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("heads")
    synthesize(out, num_mri=4, num_ct=3, size=32, workers=1)
    return out


def test_every_contrast_and_layout_is_written_with_its_labels(written: Path) -> None:
    images = {path.name: nib.load(path) for folder in ("mri", "ct") for path in (written / folder).iterdir()}
    shapes = {name: (image.shape, image.get_data_dtype().name) for name, image in images.items()}
    assert shapes == {
        "head_0000_T1.nii.gz": ((32, 32, 32), "float32"),
        "head_0001_T2.nii.gz": ((32, 32, 32), "float32"),
        "head_0002_FLAIR.nii.gz": ((32, 32, 32), "float32"),
        "head_0003_MRA.nii.gz": ((32, 32, 32), "float32"),
        "head_0000_hu.nii.gz": ((32, 32, 32), "int16"),
        "head_0001_windows.nii.gz": ((32, 32, 32, 3), "float32"),
        "head_0002_windows5d.nii.gz": ((32, 32, 32, 1, 3), "float32"),
    }
    for name in images:
        labels = nib.load(written / "labels" / name.replace(".nii.gz", "_labels.nii.gz"))
        assert labels.get_data_dtype() == np.uint8
        assert set(np.unique(labels.dataobj)) <= set(Tissue)
    rows = (written / "labels" / "labels.tsv").read_text().splitlines()
    assert rows[0] == "value\tname"
    assert rows[1 + Tissue.VESSEL] == f"{Tissue.VESSEL.value}\tvessel"


def test_the_affine_is_ras_around_the_centre_and_a_head_is_as_large_as_a_real_one(written: Path) -> None:
    for path in written.rglob("*.nii.gz"):
        image = nib.load(path)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        np.testing.assert_array_equal(image.header.get_zooms()[:3], (6, 6, 6))
        np.testing.assert_allclose(image.affine @ (15.5, 15.5, 15.5, 1), (0, 0, 0, 1))


def test_the_package_reads_all_ct_layouts_alike(written: Path) -> None:
    for path in (written / "ct").iterdir():
        windows = CT()(np.asarray(nib.load(path).dataobj))
        assert windows.shape == (3, 32, 32, 32)
        # Brain tissue lies within the brain window, neither black nor white.
        labels = np.asarray(nib.load(written / "labels" / path.name.replace(".nii", "_labels.nii")).dataobj)
        assert 0.2 < np.median(windows[0][labels == Tissue.WHITE_MATTER]) < 0.8


def test_a_head_depends_neither_on_the_number_of_heads_nor_on_that_of_workers(written: Path, tmp_path: Path) -> None:
    synthesize(tmp_path, num_mri=1, num_ct=2, size=32, workers=2)
    few, all_heads = digests(tmp_path), digests(written)
    for of_all in ("synthesize.json", "cases.csv"):
        del few[of_all]
    assert few.items() <= all_heads.items()


def test_mri_and_ct_heads_and_other_seeds_are_other_subjects(written: Path, tmp_path: Path) -> None:
    synthesize(tmp_path, num_mri=1, num_ct=0, size=32, seed=1)
    subjects = [
        written / "labels" / "head_0000_T1_labels.nii.gz",
        written / "labels" / "head_0000_hu_labels.nii.gz",
        tmp_path / "labels" / "head_0000_T1_labels.nii.gz",
    ]
    assert len({np.asarray(nib.load(path).dataobj).tobytes() for path in subjects}) == 3


def test_an_interrupted_run_leaves_no_partial_file_and_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = nib.save

    def stop_halfway(image: nib.Nifti1Image, path: Path) -> None:
        save(image, path)
        if "head_0001" in path.name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipe.nib, "save", stop_halfway)
        with pytest.raises(KeyboardInterrupt):
            synthesize(tmp_path, num_mri=2, num_ct=0, size=32)
    begun = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert sorted(begun) == ["head_0000_T1.nii.gz", "head_0000_T1_labels.nii.gz"]
    with pytest.raises(InputError, match="seed 0 and not 3"):
        synthesize(tmp_path, num_mri=2, num_ct=0, size=32, seed=3)

    synthesize(tmp_path, num_mri=2, num_ct=0, size=32)
    finished = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert len(finished) == 4
    assert begun.items() <= finished.items()


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"num_mri": 0, "num_ct": 0}, "no head to write"),
        ({"num_mri": -1, "num_ct": 2}, "num_mri is -1"),
        ({"num_mri": 1, "num_ct": 0, "num_heads": 1, "contrasts": ("T1", "PET")}, "some of T1, T2, FLAIR, MRA, CT"),
        ({"num_mri": 1, "num_ct": 0, "size": 31}, "size is 31"),
        ({"num_mri": 1, "num_ct": 0, "size": 100_000}, "size is 100000"),
        ({"num_mri": 1, "num_ct": 0, "workers": 0}, "--workers must be 1 to 256, got 0"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path: Path, asked: dict[str, int], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        synthesize(tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_call_that_is_stopped_keeps_what_is_done_and_the_same_call_goes_on(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = recipe._write_head

    def stopped_at_the_third(head: recipe.Head, **settings: int) -> None:
        write(head, **settings)
        if head.index == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(recipe, "_write_head", stopped_at_the_third)
    printed = io.StringIO()
    outcome = synthesize(tmp_path, num_mri=4, num_ct=3, size=32, workers=1, console=Console(file=printed))
    assert outcome.exit_code == 130
    assert printed.getvalue().startswith("stopped, the same command goes on; so far 3 of 7 heads")
    assert not (tmp_path / "cases.csv").exists()
    monkeypatch.undo()
    assert synthesize(tmp_path, num_mri=4, num_ct=3, size=32, workers=1).exit_code == 0
    assert digests(tmp_path) == digests(written)


def test_a_shared_head_is_shown_in_every_contrast_on_one_label_map(written: Path, tmp_path: Path) -> None:
    synthesize(tmp_path, num_mri=1, num_ct=0, num_heads=2, contrasts=("T2", "CT"), size=32, workers=1)
    rows = {row["image"]: row for row in csv.DictReader((tmp_path / "cases.csv").read_text().splitlines())}
    assert set(rows) == {
        "mri/head_0000_T1.nii.gz",
        *(
            f"{place}/shared_000{index}_{name}.nii.gz"
            for index in (0, 1)
            for place, name in (("mri", "T2"), ("ct", "CT"))
        ),
    }
    t2, ct = rows["mri/shared_0001_T2.nii.gz"], rows["ct/shared_0001_CT.nii.gz"]
    assert (
        (t2["label"], t2["subject"])
        == (ct["label"], ct["subject"])
        == ("labels/shared_0001_labels.nii.gz", "shared_0001")
    )
    assert (t2["modality"], t2["contrast"], ct["modality"], ct["contrast"]) == ("mri", "1", "ct", "")
    image, labels, hounsfield = (
        np.asarray(nib.load(tmp_path / name).dataobj) for name in (t2["image"], t2["label"], ct["image"])
    )
    assert image[labels == Tissue.VENTRICLE].mean() > 1.5 * image[labels == Tissue.WHITE_MATTER].mean()
    assert hounsfield[labels == Tissue.SKULL].mean() > 300
    # The heads that are shown once are those of any other call.
    single, others = digests(tmp_path), digests(written)
    assert all(
        single[name] == others[name] for name in ("mri/head_0000_T1.nii.gz", "labels/head_0000_T1_labels.nii.gz")
    )


def test_an_image_of_a_shared_head_does_not_depend_on_the_other_contrasts(tmp_path: Path) -> None:
    for folder, contrasts in (("one", ("CT",)), ("two", ("T1", "CT"))):
        synthesize(tmp_path / folder, num_mri=0, num_ct=0, num_heads=1, contrasts=contrasts, size=32, workers=1)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert all(one[name] == two[name] for name in ("ct/shared_0000_CT.nii.gz", "labels/shared_0000_labels.nii.gz"))
    for other in ({"contrasts": ("CT", "T1")}, {"num_heads": 0, "num_mri": 1}):
        with pytest.raises(InputError, match="holds heads made with"):
            synthesize(
                tmp_path / "one",
                **{"num_mri": 0, "num_ct": 0, "num_heads": 1, "contrasts": ("CT",), "size": 32, **other},
            )


def test_a_kept_label_map_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    synthesize(tmp_path, num_mri=1, num_ct=0, size=32, seed=3)
    (labels,) = (tmp_path / "labels").glob("*.nii.gz")
    labels.write_bytes(b"x")
    with pytest.raises(InputError, match=r"is kept, and cannot be read .*: delete it, and the same command writes it"):
        synthesize(tmp_path, num_mri=1, num_ct=0, size=32, seed=3)
    labels.unlink()
    assert synthesize(tmp_path, num_mri=1, num_ct=0, size=32, seed=3).complete


def test_heads_that_no_record_tells_of_are_not_taken_over(written: Path, tmp_path: Path) -> None:
    (tmp_path / "mri").mkdir()
    shutil.copy(written / "mri" / "head_0000_T1.nii.gz", tmp_path / "mri")
    with pytest.raises(InputError, match=r"head_0000_T1.nii.gz is there, and no synthesize.json says how it was made"):
        synthesize(tmp_path, num_mri=1, num_ct=0, size=32)
    assert not (tmp_path / "synthesize.json").exists()


def test_an_empty_file_is_made_again(tmp_path: Path) -> None:
    synthesize(tmp_path, num_mri=1, num_ct=0, size=32)
    (image,) = (tmp_path / "mri").iterdir()
    before = image.read_bytes()
    image.write_bytes(b"")
    synthesize(tmp_path, num_mri=1, num_ct=0, size=32)
    assert image.read_bytes() == before
