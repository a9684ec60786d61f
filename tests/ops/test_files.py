import errno
import fcntl
import logging
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from voxelwave.data.store import StoredInfo, write_stored
from voxelwave.errors import InputError
from voxelwave.ops.files import absolute, below, content_mark, locked, replacing, size_and_sha256, write_text


def test_a_lock_is_held_once_and_free_again(tmp_path):
    for _ in range(2):
        with locked(tmp_path), pytest.raises(InputError, match="is being written to by another process"):
            locked(tmp_path).__enter__()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_that_is_said(tmp_path, monkeypatch, caplog, code):
    def refusing(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refusing)
    entered = False
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        entered = True
    assert entered
    assert f"the file system of {tmp_path} has no locks ({os.strerror(code)})" in caplog.text


def test_a_path_is_whole_and_links_stay(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert absolute(tmp_path / "a" / ".." / "link" / "b") == tmp_path / "link" / "b"
    assert absolute(type(tmp_path)("b")) == tmp_path / "b"


def test_size_and_checksum_are_those_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert size_and_sha256(tmp_path / "a") == (3, known)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.vxw"])
def test_the_mark_of_a_file_tells_of_any_changed_value(tmp_path, name):
    values = np.random.default_rng(0).integers(-100, 100, (40, 40, 40)).astype(np.int16)

    def mark(values):
        path = tmp_path / name
        if name == "a.vxw":
            write_stored(path, values, StoredInfo(modality="mri", affine=np.eye(4).tolist()))
        else:
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
        return content_mark(path, blocks=None if name == "a.nii" else 4)

    marks = {mark(values)}
    assert {mark(values)} == marks
    for place in ((0, 0, 0), (20, 20, 20), (39, 39, 39), (13, 2, 31)):
        changed = values.copy()
        changed[place] += 1
        marks.add(mark(changed))
    assert len(marks) == 5


def test_the_mark_of_a_long_file_reads_blocks_of_it_from_the_first_to_the_last(tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(1_000_000))
    (tmp_path / "a").write_bytes(content)
    mark = content_mark(tmp_path / "a", blocks=8)
    for place in (0, -1, (1_000_000 - 4096) // 7 + 5):
        changed = content.copy()
        changed[place] ^= 1
        (tmp_path / "a").write_bytes(changed)
        assert content_mark(tmp_path / "a", blocks=8) != mark


@pytest.mark.parametrize("name", ["a", "a/b.vxw", "not/there", "inside/b", "..a", "x" * 300])
def test_a_name_below_a_folder_is_its_path(tmp_path, name):
    folder = tmp_path / "set"
    (folder / "a").mkdir(parents=True)
    (folder / "inside").symlink_to("a")
    assert below(folder, name) == folder / name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/..", "../set2/b", "a/../../b", "a/../c", "/etc/passwd", "out/b", "deep/out/x", "a\0b"]
)
def test_a_name_that_leads_out_of_a_folder_is_refused(tmp_path, name):
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "deep" / "out").symlink_to("../..")
    with pytest.raises(InputError, match="does not lie below"):
        below(folder, name)


def test_a_lock_is_gone_when_it_is_free_and_a_file_has_one_of_its_own(tmp_path):
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"), locked(tmp_path / "b.csv"), locked(tmp_path / "c.csv"):
        with pytest.raises(InputError, match=r"b\.csv is being written to by another process"):
            locked(tmp_path / "b.csv").__enter__()
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", ".lock-b.csv", ".lock-c.csv", "a"]
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_lock_that_its_holder_removed_is_made_anew(tmp_path, monkeypatch):
    real = fcntl.flock
    removed = iter([True])

    def after_removal(file, how):
        if next(removed, False):
            (tmp_path / ".lock").unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", after_removal)
    with locked(tmp_path), pytest.raises(InputError, match="by another process"):
        locked(tmp_path).__enter__()


def test_what_a_dead_writer_left_is_removed_by_the_next_and_what_a_live_one_writes_is_not(tmp_path):
    dead, live = tmp_path / "dead", tmp_path / "live"
    dead.mkdir()
    live.mkdir()
    with locked(live):
        for folder in (dead, live):
            (folder / ".part-0123abcd-x.csv").touch()
        with locked(tmp_path):
            pass
        assert not list(dead.iterdir())
        assert {path.name for path in live.iterdir()} == {".lock", ".part-0123abcd-x.csv"}
    with locked(tmp_path / "y.pth"):  # of a file in the folder
        for name in (".part-0123abcd-y.pth", ".part-0123abcd-x.csv"):
            (tmp_path / name).touch()
        with locked(tmp_path):
            assert (tmp_path / ".part-0123abcd-y.pth").exists()
            assert not (tmp_path / ".part-0123abcd-x.csv").exists()
    for name in (".part-0123abcd-x.csv", ".part-0123abcd-ax.csv"):
        (tmp_path / name).touch()
    with locked(tmp_path / "x.csv"):
        assert not (tmp_path / ".part-0123abcd-x.csv").exists()
        assert (tmp_path / ".part-0123abcd-ax.csv").exists()


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.csv"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one.suffix == other.suffix == ".csv"
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]


def test_a_file_and_its_name_are_on_disk_before_the_next_is_written(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def noting(descriptor):
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), (tmp_path / "a").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    write_text(tmp_path / "a", "text")
    (content, there_before), (folder, there_after) = synced
    assert content.name.startswith(".part-")
    assert folder == tmp_path
    assert (there_before, there_after) == (False, True)


def test_a_file_system_that_syncs_no_folder_is_borne_and_a_broken_disk_is_not(tmp_path, monkeypatch):
    real = os.fsync

    def saying(code):
        def fsync(descriptor):
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                raise OSError(code, os.strerror(code))
            real(descriptor)

        return fsync

    monkeypatch.setattr(os, "fsync", saying(errno.EINVAL))
    write_text(tmp_path / "a", "text")
    monkeypatch.setattr(os, "fsync", saying(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output error: '.*/a'"):
        write_text(tmp_path / "a", "text")


@pytest.mark.parametrize("step", range(4))
def test_at_every_instant_one_whole_generation_has_a_known_name(tmp_path, monkeypatch, step):
    last, previous = tmp_path / "last", tmp_path / "previous"
    previous.write_text("1")
    last.write_text("2")

    class Died(BaseException):
        pass

    calls = iter(range(4))
    for name in ("os.fsync", "pathlib.Path.replace"):
        module, _, function = name.rpartition(".")
        real = getattr(type(tmp_path) if module == "pathlib.Path" else os, function)

        def dying(*arguments, real=real):
            if next(calls) == step:
                raise Died
            return real(*arguments)

        monkeypatch.setattr(name, dying)
    with pytest.raises(Died), replacing(last, previous=previous) as part:
        part.write_text("3")
    newest = last if last.exists() else previous
    assert newest.read_text() == ("3" if step == 3 else "2")


def test_an_error_of_the_disk_names_the_file_and_not_the_one_beside_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a" / "b.csv") as part:
        part.write_text("")
    assert caught.value.filename == str(tmp_path / "a" / "b.csv")
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="No space left") as caught, replacing(tmp_path / "a" / "b.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "a" / "b.csv")


def test_a_name_that_says_gzip_of_what_is_not_compressed_vouches_for_nothing(tmp_path):
    path, values = tmp_path / "a.nii.gz", np.zeros((40, 40, 40), np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    marks = set()
    for place in (1000, 4096 * 8, len(content) - 1000):
        changed = content.copy()
        changed[place] = 1
        path.write_bytes(changed)
        marks.add(content_mark(path))
    assert len(marks) == 3


def test_a_lock_follows_no_link_and_empties_nothing(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to("../precious.txt")
    with pytest.raises(InputError, match=r"\.lock is a link"):
        locked(tmp_path / "out").__enter__()
    (tmp_path / "out" / ".lock").unlink()
    (tmp_path / "out" / ".lock").write_text("mine, too")
    with locked(tmp_path / "out"):
        pass
    assert [path.read_text() for path in (tmp_path / "precious.txt", tmp_path / "out" / ".lock")] == [
        "mine",
        "mine, too",
    ]
