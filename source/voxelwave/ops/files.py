"""Files that are either the old one or the new one, whole, whenever the process dies; and one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from voxelwave.errors import InputError
from voxelwave.ops.loggers import logger
from voxelwave.ops.seeding import key_to_seed

PART, LOCK = ".part-", ".lock"
TOKEN_BYTES = 4
NOT_OFFERED = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # what file systems say that cannot sync a folder
LONGEST_NAME = 200  # bytes; file systems take 255, with what is put before and behind

MARK_DIGITS, BLOCK = 8, 4096
GZIPPED = b"\x1f\x8b"
CHECKED = (GZIPPED, b"voxwave\n")  # begin files that end in checksums


@contextmanager
def naming(path: Path, *others: Path) -> Iterator[None]:
    """Let an OSError say `path`, where it names no file, as of a full disk, or one of `others`, which nobody knows."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename) in others:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` once it is whole and on disk.

    No two writers have the same one. What was at `path` before is kept as `previous` where that is given.
    """
    # Hidden, and with the suffix that writers look at.
    part = path.with_name(f"{PART}{secrets.token_hex(TOKEN_BYTES)}-{path.name}")
    try:
        with naming(path, part):
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                path.replace(previous)
            part.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # its folder may be gone
            part.unlink()


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk, where its file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Be the only process that writes `target`, a file or a folder that is there; raises InputError where another is.

    The system frees the lock when the process dies; what it was writing then is removed by the next. Where the file
    system has no locks, as some network ones, that is logged, and nothing is held.
    """
    path = target / LOCK if target.is_dir() else target.with_name(f"{LOCK}-{target.name}")
    file, held = _locked_file(path, target)
    try:
        for left in _left_by_the_dead(target) if held else ():
            left.unlink()
        yield
    finally:
        with suppress(OSError):  # its folder may be gone
            if not os.fstat(file.fileno()).st_size:  # what holds something is not of here
                path.unlink()  # as long as it is held: see below
        file.close()


def _locked_file(path: Path, target: Path) -> tuple[IO[str], bool]:
    """Return the lock file, open, and whether the system locked it."""
    while True:
        try:
            # Nothing is emptied, and no link is followed: who made the folder may have put one there.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{path} is a link, and is needed to keep other processes out: remove it") from None
            raise
        file = os.fdopen(descriptor, "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                file.close()
                raise InputError(f"{target} is being written to by another process: wait for it to end") from None
            logger.warning(
                "note: the file system of %s has no locks (%s): let no second process write to it",
                *(target, error.strerror),
            )
            return file, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, True
        file.close()  # its holder before removed it after it was opened here


def _left_by_the_dead(target: Path) -> list[Path]:
    """Return what was to become `target`, or a file below it where no other writer has a lock of its own."""
    if not target.is_dir():
        pattern = f"{PART}{2 * TOKEN_BYTES * '[0-9a-f]'}-{glob.escape(target.name)}"
        return [part for part in target.parent.glob(pattern) if part.is_file()]
    left = []
    for place, folders, files in os.walk(target):
        folders[:] = [name for name in folders if not Path(place, name, LOCK).exists()]
        locked_too = {f"{PART}{name.removeprefix(f'{LOCK}-')}" for name in files if name.startswith(f"{LOCK}-")}
        left += [
            Path(place, name)
            for name in files
            if name.startswith(PART) and PART + name[len(PART) + 2 * TOKEN_BYTES + 1 :] not in locked_too
        ]
    return left


def absolute(path: Path) -> Path:
    """Return the whole path without `..`; links stay as they are."""
    return Path(os.path.normpath(path.absolute()))


def real_path(path: Path) -> Path:
    """Return the path of the file or folder that links lead to."""
    # Path.resolve raises on a link that leads to itself; reading such a file says what is wrong with it.
    return Path(os.path.realpath(path))


def below(folder: Path, name: str) -> Path:
    """Return the path of `name`, as a file says it, which lies below `folder`.

    Raises InputError where it does not: for an absolute path, one with `..`, or a link that leads elsewhere.
    """
    path, place, parts = folder / name, str(folder), name.split("/")
    # Without a link on the way a plain name needs no look at the folders above, which takes some times as long.
    if not {"", ".", ".."} & {*parts} and "\0" not in name:
        if not any(os.path.islink(place := f"{place}/{part}") for part in parts):  # noqa: PTH114
            return path
        root, real = os.path.realpath(folder), os.path.realpath(path)
        if real.startswith(f"{root.rstrip(os.sep)}{os.sep}"):
            return path
    raise InputError(f"'{name}' does not lie below {folder}, which alone it may name files of: remove it")


def size_and_sha256(*paths: Path) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file, or of several behind one another."""
    digest, size = hashlib.sha256(), 0
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
            size += file.tell()
    return size, digest.hexdigest()


def content_mark(path: Path, *, blocks: int | None = None) -> str:
    """Return `MARK_DIGITS` hex digits that follow from the size and the content of a file.

    The ends of what gzip compressed and of a stored volume hold checksums of all the rest. Of any other file all is
    read, or that many `blocks` at even distances. Raises OSError for what is no file.
    """
    if not path.is_file() and path.exists():  # opening a pipe would wait for its writer
        raise OSError(errno.EINVAL, "not a file but a folder, a pipe or a device", str(path))
    digest = hashlib.blake2b(digest_size=MARK_DIGITS // 2)
    with path.open("rb") as file:
        checked = file.read(BLOCK).startswith(CHECKED)
        size = file.seek(0, os.SEEK_END)
        digest.update(f"{size} ".encode())
        if checked:
            blocks = 2
        if blocks is None or size <= blocks * BLOCK:
            file.seek(0)
            hashlib.file_digest(file, lambda: digest)
        else:
            for number in range(blocks):
                file.seek(number * (size - BLOCK) // (blocks - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()


def free_stem(plain: str, taken: set[str]) -> str:
    """Return `plain`, cut where it is too long and numbered where it is `taken`, and add it to `taken`."""
    folder, slash, name = plain.rpartition("/")
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name.encode()[: LONGEST_NAME - 17].decode(errors='ignore')}-{key_to_seed(name):016x}"
    plain = stem = folder + slash + name
    number = 2
    while stem in taken:
        stem, number = f"{plain}-{number}", number + 1
    taken.add(stem)
    return stem
