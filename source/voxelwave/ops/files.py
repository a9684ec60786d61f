"""Files that are either the old one or the new one, whole, whenever the process dies; and one writer at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxelwave.errors import InputError
from voxelwave.ops.loggers import logger
from voxelwave.ops.seeding import key_to_seed

LONGEST_NAME = 200  # bytes; file systems take 255, with what is put before and behind

MARK_DIGITS, BLOCK = 8, 4096
CHECKED = (".gz", ".mgz", ".vxw")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` once it is whole and on disk."""
    part = path.with_name(f".part-{path.name}")  # hidden, and with the suffix that writers look at
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which the system frees when the process dies; raises InputError where it is held.

    Where the file system has no locks, as some network ones, that is logged, and nothing is held.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(f"{path.parent} is being written to by another process: wait for it to end") from None
            logger.warning(
                "note: the file system of %s has no locks (%s): let no second process write to it",
                *(path.parent, error.strerror),
            )
        yield


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
    read, or that many `blocks` at even distances.
    """
    digest = hashlib.blake2b(digest_size=MARK_DIGITS // 2)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(f"{size} ".encode())
        if path.name.lower().endswith(CHECKED):
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
