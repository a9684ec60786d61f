"""A call that is repeated, disturbed, killed or shared among processes leaves what one undisturbed call leaves."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from voxelwave.data.listing.manifest import MANIFEST, read_manifest, write_manifest
from voxelwave.data.store import StoredVolume
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.ops.files import locked

SHAPE = (9, 10, 11)


def mri(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(0, 900, shape).astype(np.float32)


def mask(seed=0, shape=SHAPE):
    return (np.random.default_rng(seed).random(shape) > 0.5).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def prepare(out, *sources, workers=1, should_stop=lambda: False, holdout=0.3, **settings):
    settings = {"spacing": "native", "four_d": "all", **settings}
    console = Console(file=io.StringIO(), width=200)
    job = Preparer(
        out, preparation(**settings), workers=workers, holdout=holdout, console=console, should_stop=should_stop
    )
    return job([str(source) for source in sources])


def left_in(out):
    """The manifest and everything that was stored, by name."""
    assert not list(out.rglob(".part-*"))
    files = [out / MANIFEST, *out.rglob("*.vxw"), *out.rglob("*.jpg")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(files)}


def touched(out):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in [*out.rglob("*.vxw"), *out.rglob("*.jpg")]}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two sources with a file of every fate."""
    folder = tmp_path_factory.mktemp("scans")
    one, two = folder / "one", folder / "two"
    save(one / "a_T1.nii", mri(0))
    save(one / "a_seg.nii", mask(0))
    save(one / "labels/a_seg.nii", mask(1))
    save(one / "b_bold.nii.gz", mri(1, (*SHAPE, 2)))
    save(one / "c_T1.nii.gz", np.zeros(SHAPE, np.int16))
    save(two / "a_T1.nii", mri(2))
    save(two / "c_T1.nii.gz", mri(3))
    save(two / "d_T1.nii.gz", mri(0))
    (two / "e_T1.nii").write_bytes(b"damaged")
    return one, two


@pytest.fixture(scope="module")
def undisturbed(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    prepare(out, *scans)
    left = left_in(out)
    outputs = {row.output for row in read_manifest(out / MANIFEST) if row.output}
    assert outputs == {name for name in left if name.endswith(".vxw")}
    assert len(outputs) == 7
    return left


def test_a_second_call_does_nothing(tmp_path, scans, undisturbed):
    out = tmp_path / "out"
    prepare(out, *scans)
    before = touched(out)
    assert left_in(out) == undisturbed
    prepare(out, *scans)
    assert touched(out) == before
    assert left_in(out) == undisturbed


def test_sources_one_after_the_other_leave_what_both_at_once_leave(tmp_path, scans):
    one, two = scans[0], scans[1] / "d_T1.nii.gz"
    prepare(tmp_path / "once", one, two)
    out = tmp_path / "out"
    prepare(out, one)
    before = touched(out)
    for source in (two, one):
        prepare(out, source)
        assert left_in(out) == left_in(tmp_path / "once")
    assert before == touched(out)


def test_two_processes_leave_the_same_bytes_as_one(tmp_path, scans, undisturbed):
    prepare(tmp_path / "out", *scans, workers=2)
    assert left_in(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("number", [0, 1, 4, 9])
def test_a_call_that_was_stopped_goes_on(tmp_path, scans, undisturbed, number):
    out = tmp_path / "out"
    answers = iter([False] * number + [True] * 100)
    assert not prepare(out, *scans, should_stop=lambda: next(answers)).complete
    assert sum(path.stat().st_size > 0 for path in out.rglob("*.vxw")) <= number
    assert prepare(out, *scans).complete
    assert left_in(out) == undisturbed


def test_a_signal_lets_the_scan_in_hand_end(tmp_path, scans, undisturbed):
    out = tmp_path / "out"
    asked = iter([False, True])

    def stop():
        if next(asked, False):
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    assert not prepare(out, *scans, should_stop=stop).complete
    assert len(read_manifest(out / MANIFEST)) == 2
    assert prepare(out, *scans).complete
    assert left_in(out) == undisturbed


def killed_at(number, out, sources):
    """Prepare in a process that is killed before it opens, moves or deletes a file of `out` for the `number`-th time.

    Return False where it came to its end before.
    """
    child = os.fork()
    if child == 0:
        remaining = [number]

        def watch(event, arguments):
            if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(str(out)):
                remaining[0] -= 1
                if not remaining[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            prepare(out, *sources)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_call_killed_at_any_step_leaves_whole_volumes_and_ends_as_an_undisturbed_one(tmp_path, scans, undisturbed):
    number = 1
    while killed_at(number, out := tmp_path / f"killed{number}", scans):
        for path in out.rglob("*.vxw"):
            if not path.name.startswith("."):
                StoredVolume(path).read()
        prepare(out, *scans)
        assert left_in(out) == undisturbed, number
        number += 4
    assert number > 60


def test_a_killed_group_of_processes_leaves_whole_volumes_and_ends_as_an_undisturbed_one(tmp_path):
    scans, out = tmp_path / "MRI", tmp_path / "out"
    for number in range(16):
        save(scans / f"{number:02d}.nii", mri(number, (56, 56, 56)))
    prepare(tmp_path / "expected", scans, four_d="refuse")
    command = [sys.executable, "-m", "voxelwave", "prepare", str(scans), str(out)]
    options = ["--spacing", "native", "--workers", "2", "--holdout", "0.3"]
    for rows in (2, 5):
        job = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while not (out / MANIFEST).exists() or (out / MANIFEST).read_bytes().count(b"\n") < rows:
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        stored = [path for path in out.rglob("*.vxw") if not path.name.startswith(".")]
        assert len(stored) < 16
        for path in stored:
            StoredVolume(path).read()
    prepare(out, scans, four_d="refuse")
    assert left_in(out) == left_in(tmp_path / "expected")


@pytest.mark.parametrize("kept", [1, 20, -1, -30])
def test_a_cut_last_line_of_the_manifest_is_survived(tmp_path, scans, undisturbed, kept):
    out = tmp_path / "out"
    prepare(out, *scans)
    lines = (out / MANIFEST).read_bytes().splitlines(keepends=True)
    (out / MANIFEST).write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    prepare(out, *scans)
    assert left_in(out) == undisturbed


def test_what_a_killed_call_left_half_is_cleared_away(tmp_path, scans, undisturbed):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".part-dataset.json").write_text('{"form')
    (out / ".lock").touch()
    prepare(out, *scans)
    (out / "mri/.part-a_T1.vxw").write_bytes(b"half")
    prepare(out, *scans)
    assert left_in(out) == undisturbed


def test_a_stored_volume_that_is_gone_is_made_again(tmp_path, scans, undisturbed):
    out = tmp_path / "out"
    prepare(out, *scans)
    for path in (out / "mri/a_T1.vxw", out / "labels/a_T1__a_seg.vxw", out / "mri/b_bold_t001.vxw"):
        path.unlink()
    prepare(out, *scans)
    assert left_in(out) == undisturbed


def test_a_stored_volume_that_is_cut_is_made_again(tmp_path, scans, undisturbed):
    out = tmp_path / "out"
    prepare(out, *scans)
    for path in (out / "mri/a_T1.vxw", out / "labels/a_T1__a_seg.vxw"):
        path.write_bytes(path.read_bytes()[:-100])
    prepare(out, *scans)
    assert left_in(out) == undisturbed


@pytest.mark.parametrize("place", ["mri/c_T1-2.vxw", "pictures/mri/c_T1-2.jpg", "manifest.csv"])
def test_a_full_disk_is_one_line_and_the_same_call_goes_on(tmp_path, scans, undisturbed, monkeypatch, place):
    out = tmp_path / "out"
    monkeypatch.setattr("voxelwave.ops.files.secrets.token_hex", lambda size: "0" * 2 * size)
    full = (out / place).with_name(f".part-00000000-{Path(place).name}")

    def fill():
        # The device that is always full, where the next file of that name would be written.
        full.parent.mkdir(parents=True, exist_ok=True)
        if not full.is_symlink():
            full.symlink_to("/dev/full")
        return False

    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; what is done is kept: make room"):
        prepare(out, *scans, should_stop=fill)
    full.unlink(missing_ok=True)
    assert prepare(out, *scans).complete
    assert left_in(out) == undisturbed


def test_two_calls_at_once_are_refused(tmp_path, scans):
    out = tmp_path / "out"
    prepare(out, *scans)
    with locked(out), pytest.raises(InputError, match="is being written to by another process"):
        prepare(out, *scans)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"spacing": "1.0"}, r"prepared with spacing_mm None and not 1\.0"),
        ({"crop": False}, "prepared with crop True and not False"),
        ({"hu_offset": -1024.0}, r"hu_offset 0\.0 and not -1024\.0"),
        ({"four_d": "first"}, "four_d all and not first"),
        ({"subject": "p([0-9]+)"}, r"subject None and not p\(\[0-9\]\+\)"),
        ({"overrides": ["mri.percentiles=[1,99]"]}, "prepared with modalities"),
    ],
)
def test_other_settings_need_another_folder(tmp_path, scans, settings, reason):
    prepare(tmp_path / "out", scans[0])
    before = left_in(tmp_path / "out")
    with pytest.raises(InputError, match=reason):
        prepare(tmp_path / "out", scans[0], **settings)
    assert left_in(tmp_path / "out") == before


# Sources that change


@pytest.fixture
def changing(tmp_path):
    scans, out = tmp_path / "in", tmp_path / "out"
    for number, name in enumerate(("a_T1", "b_T1", "c_T1")):
        save(scans / f"{name}.nii", mri(number))
    save(scans / "b_seg.nii", mask())
    prepare(out, scans)
    return scans, out


def fresh(scans):
    """What a first call leaves of the scans as they are now."""
    out = scans.parent / "fresh"
    shutil.rmtree(out, ignore_errors=True)
    prepare(out, scans)
    return left_in(out)


def test_what_changed_is_done_again_with_its_label_map_and_nothing_else(changing):
    scans, out = changing
    before = touched(out)
    save(scans / "b_T1.nii", mri(9))
    prepare(out, scans)
    assert left_in(out) == fresh(scans)
    changed = {path.name for path, at in touched(out).items() if before[path] != at}
    assert changed == {"b_T1.vxw", "b_T1.jpg", "b_T1__b_seg.vxw", "b_T1__b_seg.jpg"}


def damaged(scans):
    (scans / "b_T1.nii").write_bytes(b"damaged")


def an_image_instead_of_a_label_map(scans):
    save(scans / "b_T1.nii", mask(3).astype(np.float32))
    prepare(scans.parent / "out", scans)
    save(scans / "b_T1.nii", mri(3))


def a_label_map_instead_of_an_image(scans):
    save(scans / "b_T1.nii", mask(3).astype(np.float32))


def fewer_frames(scans):
    save(scans / "b_T1.nii", mri(4, (*SHAPE, 3)))
    prepare(scans.parent / "out", scans)
    save(scans / "b_T1.nii", mri(4, (*SHAPE, 2)))


def one_volume_instead_of_several(scans):
    save(scans / "b_T1.nii", mri(4, (*SHAPE, 3)))
    prepare(scans.parent / "out", scans)
    save(scans / "b_T1.nii", mri(4))


def a_new_file(scans):
    save(scans / "a_seg.nii", mask(5))
    save(scans / "d_T1.nii", mri(5))


def another_grid(scans):
    save(scans / "b_T1.nii", mri(6, (9, 9, 9)))


def renamed(scans):
    (scans / "b_T1.nii").rename(scans / "x_T1.nii")


def moved_label_maps(scans):
    (scans / "masks").mkdir()
    (scans / "b_seg.nii").rename(scans / "masks" / "b_seg.nii")


def a_withdrawn_label_map(scans):
    (scans / "b_seg.nii").unlink()


@pytest.mark.parametrize(
    "change",
    [
        damaged,
        an_image_instead_of_a_label_map,
        a_label_map_instead_of_an_image,
        fewer_frames,
        one_volume_instead_of_several,
        a_new_file,
        another_grid,
        renamed,
        moved_label_maps,
        a_withdrawn_label_map,
    ],
)
def test_after_a_change_the_next_call_leaves_what_a_first_call_would(changing, change):
    scans, out = changing
    change(scans)
    prepare(out, scans)
    assert left_in(out) == fresh(scans)


@pytest.mark.parametrize("gone", [["b_T1.nii"], ["b_T1.nii", "b_seg.nii"]], ids=len)
def test_rows_of_files_that_are_gone_stay(changing, gone):
    scans, out = changing
    before = left_in(out)
    for name in gone:
        (scans / name).unlink()
    prepare(out, scans)
    assert left_in(out) == before


def rewritten(out, **columns):
    """Change the manifest of a data set, as who passes it on can; the scan is then taken for changed."""
    first, *others = read_manifest(out / MANIFEST)
    changed = [first.model_copy(update={"file_mtime_ns": 1, **columns}), *others]
    write_manifest(out / MANIFEST, changed)


@pytest.mark.parametrize("given", ["../home/thesis.txt", "{home}/thesis.txt", "link/thesis.txt"])
def test_a_manifest_deletes_nothing_beyond_its_data_set(tmp_path, given):
    scan = save(tmp_path / "scans/a_T1.nii", mri(0))
    out, home = tmp_path / "out", tmp_path / "home"
    prepare(out, scan.parent)
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    (out / "link").symlink_to(home)
    rewritten(out, output=given.format(home=home))
    with pytest.raises(InputError, match="does not lie below"):
        prepare(out, scan.parent)
    assert (home / "thesis.txt").read_text() == "mine"


def test_only_what_was_written_here_is_deleted(tmp_path):
    scan = save(tmp_path / "scans/a_T1.nii", mri(0))
    out = tmp_path / "out"
    prepare(out, scan.parent)
    (out / "notes.txt").write_text("mine")
    (out / "pictures/notes.jpg").write_text("mine, too")
    rewritten(out, output="notes.txt")
    prepare(out, scan.parent)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "pictures/notes.jpg").read_text() == "mine, too"


def test_a_link_within_a_data_set_leads_no_writing_out_of_it(tmp_path):
    scan = save(tmp_path / "scans/sub/a_T1.nii", mri(0))
    out, home = tmp_path / "out", tmp_path / "home"
    prepare(out, save(tmp_path / "other/b_T1.nii", mri(1)).parent)
    home.mkdir()
    (out / "mri/sub").symlink_to(home)
    with pytest.raises(InputError, match="does not lie below"):
        prepare(out, scan.parents[1])
    assert not list(home.iterdir())


@pytest.mark.parametrize("content", ["[" * 10**5, "[]", '{"format_version": 1, "settings": 5, "holdout": 0}'])
def test_settings_that_cannot_be_are_one_line(tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset.json is damaged: prepare into another folder$"):
        prepare(tmp_path / "out", save(tmp_path / "scans/a_T1.nii", mri(0)).parent)


@pytest.mark.parametrize("holdout", ["1e999", "NaN", "-1", "1" * 400, '"x"'])
def test_a_share_that_cannot_be_is_one_line(tmp_path, holdout):
    prepare(tmp_path / "out", scans := save(tmp_path / "scans/a_T1.nii", mri(0)).parent)
    record = tmp_path / "out/dataset.json"
    record.write_text(record.read_text().replace('"holdout": 0.3', f'"holdout": {holdout}'))
    with pytest.raises(InputError, match=r"dataset\.json is damaged"):
        prepare(tmp_path / "out", scans)


def test_a_damaged_file_that_is_gone_is_no_reason_to_complain_for_ever(changing):
    scans, out = changing
    (scans / "d_T1.nii").write_bytes(b"damaged")
    (scans / "sub").mkdir()
    (scans / "sub/e_T1.nii").write_bytes(b"damaged, too")
    assert prepare(out, scans).unusable == 2
    (scans / "d_T1.nii").unlink()
    assert prepare(out, scans / "a_T1.nii").unusable == 2  # nothing was said of the rest
    assert prepare(out, scans).unusable == 1
    (scans / "sub/e_T1.nii").unlink()
    assert prepare(out, scans).unusable == 0
    assert left_in(out) == fresh(scans)


@pytest.mark.parametrize("passing", [OSError(5, "Input/output error"), PermissionError(13, "no"), MemoryError()])
def test_an_error_of_the_moment_is_not_for_ever(changing, monkeypatch, passing):
    scans, out = changing
    save(scans / "d_T1.nii", mri(7))

    def fails(path, *others, **more):
        raise passing

    with monkeypatch.context() as broken:
        broken.setattr("voxelwave.data.reading.nifti.towards_ras", fails)
        assert prepare(out, scans).unusable == 1
    assert prepare(out, scans).unusable == 0
    assert left_in(out) == fresh(scans)


def slices(folder, numbers, **tags):
    """Write slices of a CT whose voxels say where they lie."""
    pydicom = pytest.importorskip("pydicom", reason="reading DICOM is an extra: pip install 'voxelwave[dicom]'")
    folder.mkdir(parents=True, exist_ok=True)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij"))
    head = np.where((places**2).sum(0) < 0.8, 40, -1000) + np.random.default_rng(0).normal(0, 8, (24,) * 3)
    for number in numbers:
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number}"
        dataset.SeriesInstanceUID, dataset.Modality, dataset.PatientID = "1.2.3", "CT", "1"
        dataset.ImageType, dataset.PhotometricInterpretation = ["ORIGINAL", "PRIMARY"], "MONOCHROME2"
        dataset.Columns = dataset.Rows = 24
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.ImagePositionPatient, dataset.PixelSpacing = [0, 0, number], [1, 1]
        dataset.ImageOrientationPatient, dataset.SamplesPerPixel = [1, 0, 0, 0, 1, 0], 1
        dataset.PixelData = head[number].astype(np.int16).tobytes()
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / f"{number}{len(tags)}.dcm", enforce_file_format=True)


@pytest.mark.parametrize("second", ["first", "second"])
@pytest.mark.parametrize("localizer", [False, True])
def test_a_series_that_arrives_in_pieces_is_stored_once_and_whole(tmp_path, second, localizer):
    scans, out = tmp_path / "in", tmp_path / "out"
    slices(scans / "first", range(14))
    prepare(out, scans)
    slices(scans / second, range(14, 24))
    if localizer:  # another image of the same UID, so that names tell the two apart
        slices(scans / second, [0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SOPInstanceUID="1.2.3.99")
    prepare(out, scans)
    assert left_in(out) == fresh(scans)
    (row,) = [row for row in read_manifest(out / MANIFEST) if row.accepted]
    assert row.stored_shape[2] == 24


def test_series_whose_uids_have_no_points_are_told_apart(tmp_path):
    scans, out = tmp_path / "in", tmp_path / "out"
    for number in (1, 2):
        slices(scans, range(24), SeriesInstanceUID=f"{number}", PatientID=f"{number}", Rows=24 - number)
        for file in scans.glob("*3.dcm"):
            file.rename(file.with_stem(f"{number}-{file.stem}"))
    prepare(out, scans)
    before = touched(out)
    assert len(before) == 4
    prepare(out, scans)
    assert touched(out) == before
