"""The command line, in this process or in one of its own: what a user types, what is printed, and the exit code."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from voxelwave.cli import main

ROOT = Path(__file__).parents[2]
SUBSET_SCRIPT = ROOT / "source" / "train_phase0_subset.py"


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed to stdout and stderr."""

    code: int
    out: str
    err: str


def voxelwave(*arguments: object, folder: Path | None = None, program: Callable[[], None] = main) -> Ended:
    """Run `voxelwave` with these arguments in a working folder; `program` is another command in its place.

    An exception that would be a traceback in a terminal is raised here.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder or Path.cwd())
        patch.setenv("COLUMNS", "400")
        patch.setattr(sys, "argv", ["voxelwave", *map(str, arguments)])
        patch.setitem(sys.modules, "__main__", ModuleType("__main__"))  # the help names the program after it
        try:
            program()
            code = 0
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), code
    return Ended(code, out.getvalue(), err.getvalue())


def process(*command: object, folder: Path | None = None, **environment: str) -> Ended:
    """Run Python with these arguments in a process of its own: the proof that the tests' process helps with nothing."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=120,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def train_phase0_subset() -> None:
    """`python source/train_phase0_subset.py`, as a `program`."""
    runpy.run_path(str(SUBSET_SCRIPT), run_name="__main__")


def error_of(ended: Ended) -> str:
    """Return the one line on stderr of a command that ended because of its input."""
    assert ended.code == 2, ended
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("voxelwave: ")
    return line
