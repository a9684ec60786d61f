"""What folders, globs and lists name, and how files are shared out among sources."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from voxelwave.data.listing.discovery import Source, VolumeFile, find_files
from voxelwave.data.listing.selection import accept_volumes, refusal_reason
from voxelwave.data.modalities.ct import CT
from voxelwave.data.modalities.mri import MRI
from voxelwave.errors import InputError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).normal(0, 100, (9, 9, 9)).astype(np.float32) if array is None else array
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def names(source, root):
    return [str(file.path.relative_to(root)) for file in find_files(source)]


def test_a_folder_is_searched_to_the_bottom_sorted_without_hidden_files(tmp_path):
    volumes = ("b.nii", "a/z.nii.gz", "a/c.mgz")
    touch(*(tmp_path / name for name in (*volumes, ".b.nii", ".git/d.nii", "a/notes.txt")))
    assert names(Source(str(tmp_path), "mri"), tmp_path) == ["a/c.mgz", "a/z.nii.gz", "b.nii"]


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "store/a.nii", tmp_path / "set/b.nii")
    (tmp_path / "set/more").symlink_to(tmp_path / "store")
    (tmp_path / "set/circle").symlink_to(tmp_path / "set")
    (tmp_path / "set/same.nii").symlink_to(tmp_path / "set/b.nii")
    assert names(Source(str(tmp_path / "set"), "mri"), tmp_path) == ["set/b.nii", "set/more/a.nii"]


def test_a_glob_reaches_into_folders(tmp_path):
    touch(*(tmp_path / name for name in ("s1/T1.nii", "s1/T2.nii", "s2/T1.nii", "T1.nii")))
    assert names(Source(f"{tmp_path}/**/T1.nii", "mri"), tmp_path) == ["T1.nii", "s1/T1.nii", "s2/T1.nii"]


def test_a_list_is_relative_to_itself_and_filters_by_modality(tmp_path):
    touch(*(tmp_path / f"{name}.nii" for name in "abc"))
    (tmp_path / "list.csv").write_text("path,modality\nc.nii,mri\na.nii,ct\nb.nii,\nc.nii,mri\n")
    listed = str(tmp_path / "list.csv")
    assert names(Source(listed, "mri"), tmp_path) == ["c.nii", "b.nii"]
    assert names(Source(listed, "ct"), tmp_path) == ["a.nii", "b.nii"]


@pytest.mark.parametrize(
    ("content", "path", "reason"),
    [
        (None, "none", "does not exist"),
        (None, "", "folder holds no volume"),
        (None, "*.nii", "pattern matches no volume"),
        ("file\na.nii\n", "list.csv", "column 'path'"),
        ("", "list.csv", "column 'path'"),
        ("path\n", "list.csv", "list names no"),
        ("path\ngone.nii\n", "list.csv", "line 2: no file"),
        (f"path\n{'x' * 5000}\n", "list.csv", "line 2: no file"),
        ("path\n\0\xff", "list.csv", "list"),
    ],
)
def test_a_source_without_files_is_said_in_one_line(tmp_path, content, path, reason):
    if content is not None:
        (tmp_path / "list.csv").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=reason) as error:
        find_files(Source(f"{tmp_path}/{path}", "mri"))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_maximum_is_shared_evenly_by_the_sources_of_a_modality(tmp_path):
    for folder, number in (("t1", 5), ("t2", 5), ("mra", 1)):
        for index in range(number):
            write(tmp_path / folder / f"{index}.nii")
    sources = [Source(str(tmp_path / folder), "mri") for folder in ("t1", "t2", "mra")]
    selection = accept_volumes(sources, {"mri": MRI()}, max_volumes_per_modality=6)
    given = [str(file.path.relative_to(tmp_path)) for file in selection.files()["mri"]]
    assert given == ["t1/0.nii", "t1/1.nii", "t1/2.nii", "t2/0.nii", "t2/1.nii", "mra/0.nii"]
    assert selection.sizes() == {"mri": [3, 2, 1]}
    assert len(accept_volumes(sources, {"mri": MRI()}).files()["mri"]) == 11


def test_scans_of_formats_that_are_not_trained_on_are_named_by_kind(tmp_path):
    write(tmp_path / "a.nii")
    touch(
        *(tmp_path / name for name in ("b.nrrd", "s/1.dcm", "s/2.dcm", "s/3.dcm", "c.img.gz", "d.mif", "e+orig.BRIK"))
    )
    selection = accept_volumes([Source(str(tmp_path), "mri")], {"mri": MRI()})
    named = {refusal.path.name: refusal.reason for refusal in selection.refused}
    assert sorted(named) == ["1.dcm", "b.nrrd", "c.img.gz", "d.mif", "e+orig.BRIK"]
    assert "of a format that is not trained on (.dcm), as are 2 other such files" in named["1.dcm"]
    assert "(.img.gz): `voxelwave prepare` it" in named["c.img.gz"]


def test_a_file_that_two_sources_name_counts_once(tmp_path):
    write(tmp_path / "a.nii")
    sources = [Source(str(tmp_path), "mri"), Source(f"{tmp_path}/*.nii", "mri")]
    assert len(accept_volumes(sources, {"mri": MRI()}).files()["mri"]) == 1


def test_content_is_checked_only_when_asked(tmp_path):
    write(tmp_path / "a.nii")
    write(tmp_path / "empty.nii", np.zeros((9, 9, 9), dtype=np.float32))
    (tmp_path / "text.nii").write_text("no volume")
    source = [Source(str(tmp_path), "mri")]
    by_header = accept_volumes(source, {"mri": MRI()})
    by_content = accept_volumes(source, {"mri": MRI()}, check_content=True)
    assert [refusal.path.name for refusal in by_header.refused] == ["text.nii"]
    assert [refusal.path.name for refusal in by_content.refused] == ["empty.nii", "text.nii"]


def test_a_source_with_nothing_left_names_the_count_and_the_first_reason(tmp_path):
    write(tmp_path / "x_mask.nii")
    write(tmp_path / "y_seg.nii")
    with pytest.raises(InputError, match=r"none of its 2 files.*x_mask.nii.*label map"):
        accept_volumes([Source(str(tmp_path), "mri")], {"mri": MRI()})


CT_PROBLEMS = {
    "body_ct_small_seg.nii.gz": "label map",
    "sccsf.nii.gz": "Hounsfield",
    "scct_cormack.nii": "Hounsfield",
    "scgrey.nii.gz": "Hounsfield",
    "scwhite.nii.gz": "Hounsfield",
    "slicer_ct_head_lowres.nii.gz": "Hounsfield",
}
MR_PROBLEMS = {
    "gbm1_tumour.nii.gz": "label map",
    "mne_ecog_aparc+aseg.mgz": "label map",
    "ms07_lesions.nii.gz": "label map",
    "seg3d_brain_mask.nii.gz": "label map",
    "seg3d_skull_mask.nii.gz": "label map",
    "stroke_scribble.nii.gz": "label map",
}
ODD_PROBLEMS = {
    "bigendian_4d.nii": "too small",
    "complex64.nii.gz": "complex",
    "epi_4d_int16.nii.gz": "4 axes",
    "html_page.nii": "web page",
    "lfs_pointer.nii.gz": "Git-LFS",
    "nifti2_4d.nii.gz": "4 axes",
    "not_nifti.nii": "not a NIfTI",
    "phase_scl.nii.gz": "neither MRI nor CT by 'phase'",
    "rgb24.nii.gz": "RGB",
    "truncated_gzip.nii.gz": "cut off",
    "zero_dim5.nii.gz": "5 axes",
}


@pytest.mark.parametrize(
    ("folder", "modality", "problems", "total"),
    [("ct", CT(), CT_PROBLEMS, 10), ("mr", MRI(), MR_PROBLEMS, 19), ("odd", MRI(), ODD_PROBLEMS, 15)],
)
def test_of_the_real_files_just_the_unusable_are_refused(real_data, folder, modality, problems, total):
    files = find_files(Source(str(real_data / "volumes" / folder), "any"))
    reasons = {file.path.name: refusal_reason(file, modality, check_content=True) for file in files}
    refused = {name: reason for name, reason in reasons.items() if reason}
    assert len(reasons) == total
    assert refused.keys() == problems.keys()
    for name, reason in refused.items():
        assert problems[name] in reason


def test_the_five_axes_of_zeros_are_refused_as_ct_too(real_data):
    file = VolumeFile(real_data / "volumes/odd/zero_dim5.nii.gz", "ct")
    assert "every value is 0" in refusal_reason(file, CT(), check_content=True)
