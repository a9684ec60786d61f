"""Checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from voxelwave.errors import InputError
from voxelwave.ops.files import replacing
from voxelwave.ops.texts import one_line

FORMAT_VERSION = 1
# Two generations of what a run goes on from: one of them is whole, whenever the process or the machine dies.
LAST, PREVIOUS = "last.pth", "last.previous.pth"
BEST = "best_model.pth"  # the weights of the lowest score
FOLDER_ATTRIBUTE = 0x10  # of MS-DOS


def best_weights(path: Path) -> Path:
    """Return the file of a run folder that holds its best weights, or the file that `path` is itself."""
    return path / BEST if path.is_dir() else path


@contextmanager
def taken_for(file: Path, what: str) -> Iterator[None]:
    """Raise InputError where what was read of `file` turns out not to be `what`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{file} is no {what}: {one_line(error)}") from None


def _save(state: dict[str, Any], part: Path) -> None:
    with part.open("wb") as file:  # given a path, torch would keep its name in the file
        torch.save(state, file)


def save_checkpoint(
    path: Path,
    state: dict[str, Any],
    save: Callable[[dict[str, Any], Path], None] = _save,
    *,
    previous: Path | None = None,
) -> None:
    """Write `state`, tensors and plain values, atomically; what `path` was before becomes `previous`, where given.

    Raises InputError where the disk does not take it.
    """
    try:
        with replacing(path, previous=previous) as part:
            save({"format_version": FORMAT_VERSION, **state}, part)
    except OSError as error:
        raise _unwritten(path, error.strerror or str(error)) from None
    except RuntimeError as error:  # torch's writer has no other word for a full disk
        cause = error.__context__
        known = cause.strerror if isinstance(cause, OSError) else None
        raise _unwritten(path, known or f"{str(error).splitlines()[0]}; is the disk full?") from None


def _unwritten(path: Path, reason: str) -> InputError:
    before = "; the file before it is unharmed" if path.exists() else ""
    return InputError(f"cannot write {path}: {reason}{before}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed, and no damage to it goes unseen.

    Raises InputError for a missing, damaged or foreign file, and for one of another format version.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    with path.open("rb") as file:  # opened once: a run may put the next checkpoint in its place meanwhile
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch muses about foreign pickles before it refuses them
                if archive := zipfile.is_zipfile(file):
                    _check_archive(file)
                file.seek(0)
                state = torch.load(file, map_location="cpu", weights_only=True)
                if not archive:  # torch's older format has no checksums; no run ever wrote it
                    raise zipfile.BadZipFile
        except Exception as error:  # from arbitrary bytes the unpickler raises anything
            # Not in torch's words, which advise to execute what was refused.
            refused = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)
            reason = (
                "it holds more than tensors and plain values, and is refused"
                if refused
                else "damaged or of another kind"
            )
            raise InputError(f"{path} is not a readable checkpoint ({reason}); take another one of its run") from None
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has checkpoint format {version}, this voxelwave reads format {FORMAT_VERSION}")
    return dict(state)


def _check_archive(file: BinaryIO) -> None:
    """Raise BadZipFile for a file of which torch would read anything but what it wrote: it compares no checksum."""
    with zipfile.ZipFile(file) as archive:
        # An entry with this attribute is empty to torch.
        folders = [entry.filename for entry in archive.infolist() if entry.external_attr & FOLDER_ATTRIBUTE]
        if damaged := archive.testzip() or next(iter(folders), None):
            raise zipfile.BadZipFile(damaged)
