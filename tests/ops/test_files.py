import errno
import fcntl
import logging
import os

import pytest

from voxelwave.errors import InputError
from voxelwave.ops.files import absolute, locked, size_and_sha256


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
