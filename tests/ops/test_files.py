import errno
import fcntl
import logging
import os

import nibabel
import numpy as np
import pytest

from voxelwave.data.store import StoredInfo, write_stored
from voxelwave.errors import InputError
from voxelwave.ops.files import absolute, below, content_mark, locked, size_and_sha256


def test_a_lock_is_held_once_and_free_again(tmp_path):
    for _ in range(2):
        with locked(tmp_path / ".lock"), pytest.raises(InputError, match="is being written to by another process"):
            locked(tmp_path / ".lock").__enter__()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_a_file_system_has_no_locks_that_is_said(tmp_path, monkeypatch, caplog, code):
    def refusing(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refusing)
    entered = False
    with caplog.at_level(logging.WARNING), locked(tmp_path / ".lock"):
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
