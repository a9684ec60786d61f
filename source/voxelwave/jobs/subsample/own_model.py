"""A model that a user wrote: one file with a class `Model`, named on the command line and nowhere else."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from torch import nn

from voxelwave.errors import InputError
from voxelwave.ops.texts import one_line
from voxelwave.unrolled.subsampling import Subsampling

CLASS, MODULE = "Model", "voxelwave_own_model"


class OwnModel(NamedTuple):
    """The class of a file, and the text of the file with its checksum."""

    path: Path
    kind: type[nn.Module]
    checksum: str
    source: str

    def build(self, subsampling: Subsampling) -> nn.Module:
        """Return the model behind a layer; raises InputError, with the line, for what its constructor raises."""
        try:
            return self.kind(subsampling)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{self.path}{_line(self.path, error)}: {CLASS}(subsampling) fails: {_said(error)}"
            ) from error


def read_own_model(path: Path) -> OwnModel:
    """Run a file of Python that defines `class Model(nn.Module)`, whose constructor takes the subsampling layer.

    Raises InputError for a file that is missing, fails, or has no such class.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
        raise InputError(f"cannot read the model {path}: not a file but a folder, a pipe or a device")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the model {path}: {error.strerror}") from None
    module = ModuleType(MODULE)
    module.__file__ = str(path)
    sys.modules[MODULE] = module  # where dataclasses look for it
    try:
        # The user asks for this file to be run; nothing that was read from a file names it.
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        text = importlib.util.decode_source(source)
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}{_line(path, error)}: {_said(error)}") from error
    kind = getattr(module, CLASS, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise InputError(
            f"{path}: defines no `class {CLASS}(nn.Module)`, whose constructor takes the subsampling layer"
        )
    return OwnModel(path, kind, hashlib.sha256(source).hexdigest()[:16], text)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _line(path: Path, error: BaseException) -> str:
    """Return the last line of the file that an error came through."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
