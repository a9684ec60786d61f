"""The headers of many DICOM files, read in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voxelwave.data.reading import dicom
from voxelwave.jobs.common.console import tracked
from voxelwave.jobs.common.processes import run_all

FILES_AT_ONCE = 500

Chunk = tuple[int, list[Path]]


def read_headers(files: Sequence[Path], *, workers: int) -> dicom.Headers:
    """Do as `dicom.read_headers` does, in the order of the files; raises ProcessFault where a process was killed."""
    chunks = [(start, list(files[start : start + FILES_AT_ONCE])) for start in range(0, len(files), FILES_AT_ONCE)]
    read = run_all(_read, chunks, workers=workers, name=_name)
    found = dict(tracked(read, "read DICOM headers", total=len(chunks)))
    return [header for start, _ in chunks for header in found[start]]


def _read(chunk: Chunk) -> tuple[int, dicom.Headers]:
    start, files = chunk
    return start, dicom.read_headers(files)


def _name(chunk: Chunk) -> str:
    return str(chunk[1][0].parent)
