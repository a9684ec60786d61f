"""Why a file cannot be read: it is cut off, a web page, a Git-LFS pointer, no volume, or needs a package."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError

from voxelwave.errors import DamagedVolume, InputError, UnusableVolume
from voxelwave.ops.loggers import silenced
from voxelwave.ops.texts import one_line

# Formats of volumes that are not read; listed, so that no scan is passed over without a word.
NOT_READ = (
    *(".img", ".img.gz", ".mha", ".mhd", ".mnc", ".mif", ".mif.gz", ".brik", ".brik.gz", ".brik.bz2", ".gipl"),
    *(".gipl.gz", ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".nrrd.gz", ".dcm.gz", ".dcm.zip", ".par", ".ecat"),
)

CHUNK, MOST_CHUNKS_BEHIND = 1 << 20, 64


def unread_format(path: Path) -> str | None:
    """Return the suffix of `path` where it is that of a format of volumes which is not read."""
    name = path.name.lower()
    return max((suffix for suffix in NOT_READ if name.endswith(suffix)), key=len, default=None)


@contextmanager
def as_unusable(path: Path) -> Iterator[None]:
    """Raise a DamagedVolume for whatever error a damaged file causes in its reader, and keep readers from logging."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise DamagedVolume("not a file but a folder, a pipe or a device")
    try:
        with silenced(imageglobals.logger), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a file but does not keep it from being read
            yield
    except UnusableVolume:
        raise
    # From arbitrary bytes a reader raises anything: zlib.error, struct.error, OverflowError, MemoryError, …
    except Exception as error:
        raise DamagedVolume(_reason(path, error)) from error


def may_pass(unusable: UnusableVolume) -> bool:
    """Tell whether a file may be read another time: the system refused it, as a file server does that is away."""
    cause = unusable.__cause__
    # nibabel says without a number that a file is missing; what a file holds wrong has none either.
    return isinstance(cause, FileNotFoundError) or (isinstance(cause, OSError) and cause.errno is not None)


def check_gzip_end(stream: gzip.GzipFile) -> None:
    """Read on to the checksum behind what was read; what lies behind that does not count.

    Raises DamagedVolume where the checksum says that other values were compressed, EOFError where it is missing.
    """
    try:
        for _ in range(MOST_CHUNKS_BEHIND):
            if not stream.read(CHUNK):
                return
    except gzip.BadGzipFile as error:
        if not str(error).startswith("Not a gzipped file"):  # but something behind its end
            raise DamagedVolume("damaged: its compressed data does not agree with its checksum") from None


def extra(module: str, *, package: str = "", kind: str = "DICOM", name: str = "dicom") -> ModuleType:
    """Import a module of the extra `name` that reads a `kind` of files; raises InputError where it is missing."""
    try:
        return import_module(module)
    except ImportError as missing:
        raise InputError(f"reading {kind} needs {package or module}: pip install 'voxelwave[{name}]'") from missing


def _reason(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "no such file"
    try:
        with path.open("rb") as stream:
            start = stream.read(256).lstrip().lower()
    except OSError as denied:
        return f"unreadable: {denied.strerror}"
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself: run `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a volume: download it again"
    if isinstance(error, EOFError):
        return "cut off: the compressed data ends too early"
    if isinstance(error, ImageFileError):
        return "not a NIfTI or MGH file"
    if isinstance(error, MemoryError):
        return "its header claims more voxels than memory holds"
    return f"unreadable: {type(error).__name__}: {one_line(error)}"
