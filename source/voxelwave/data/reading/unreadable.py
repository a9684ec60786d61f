"""Why a file cannot be read: it is cut off, a web page, a Git-LFS pointer, no volume, or needs a package."""

from __future__ import annotations

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


@contextmanager
def as_unusable(path: Path) -> Iterator[None]:
    """Raise a DamagedVolume for whatever error a damaged file causes in its reader, and keep readers from logging."""
    try:
        with silenced(imageglobals.logger), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is odd in a file but does not keep it from being read
            yield
    except UnusableVolume:
        raise
    # From arbitrary bytes a reader raises anything: zlib.error, struct.error, OverflowError, MemoryError, …
    except Exception as error:
        raise DamagedVolume(_reason(path, error)) from error


def extra(module: str, *, package: str = "", kind: str = "DICOM") -> ModuleType:
    """Import a module of the extra `dicom` that reads a `kind` of files; raises InputError where it is missing."""
    try:
        return import_module(module)
    except ImportError as missing:
        raise InputError(f"reading {kind} needs {package or module}: pip install 'voxelwave[dicom]'") from missing


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
    return f"unreadable: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
