"""What a folder of volumes holds, and which of them training would refuse: one row a file."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from voxelwave.data.listing.discovery import Source, find_files, home_expanded
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.data.reading.volume import VolumeInfo
from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.data.recognition.rules import modality_by_content, modality_by_name
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.registry import MODALITIES


@dataclass(frozen=True)
class Row:
    """What is known of one file; `problem` is why training would refuse it."""

    path: Path
    modality: str = "?"
    info: VolumeInfo | None = None
    values: str = ""
    problem: str | None = None


def inspect(path: str, *, modality: str | None = None, console: Console | None = None) -> int:
    """Print a table of the files at `path` (file, folder, glob or CSV) and return how many have a problem.

    Without `modality` it is told as `voxelwave prepare` does, and is `?` where nothing tells it. Stored volumes
    are read whole, so that a damaged one is found.

    Raises:
        InputError: where there is no volume at `path`, or no such modality.
    """
    readers: dict[str, Modality] = {name: MODALITIES.build(name) for name in MODALITIES.names()}
    if modality is not None and modality not in readers:
        raise InputError(f"unknown modality '{modality}'; known: {', '.join(readers)}")
    place = home_expanded(path)
    if not place.exists() and not glob.has_magic(path):
        raise InputError(f"'{path}' does not exist: give a file, a folder, a glob in quotes or a CSV list")
    files = [file.path for file in find_files(Source(path, modality or ""))]
    root = place if place.is_dir() else None
    rows = [_row(file, root, modality, readers) for file in files]
    refused = sum(row.problem is not None for row in rows)
    (console or Console()).print(_table(rows, root), f"{len(rows)} files, {refused} with a problem")
    return refused


def _row(path: Path, root: Path | None, given: str | None, readers: dict[str, Modality]) -> Row:
    if is_stored(path):
        return _stored_row(path)
    name = given or "?"
    info, values = None, ""
    try:
        info = read_header(path)
        told = modality_by_name(path, root or path.parent).modality
        name = given or told or "?"
        if problem := info.problem():
            return Row(path, name, info, values, problem)
        volume = read_volume(path)
        values = _range(volume.array)
        if given is None and told is None:
            name = modality_by_content(volume.array).modality or "?"
        problem = label_map_reason(path, volume.array)
        if problem is None and name in readers:
            problem = info.problem(readers[name].channels)
            if problem is None:
                readers[name](volume.array)
    except UnusableVolume as unusable:
        problem = str(unusable)
    return Row(path, name, info, values, problem)


def _stored_row(path: Path) -> Row:
    """Read a stored volume whole, and with it check every chunk."""
    try:
        stored = StoredVolume(path)
        info = VolumeInfo(stored.shape, stored.affine, stored.dtype)
        return Row(path, stored.info.modality, info, _range(stored.read().astype(np.float32)))
    except UnusableVolume as unusable:
        return Row(path, problem=str(unusable))


def _range(array: np.ndarray) -> str:
    finite = array[np.isfinite(array)]
    return f"{finite.min():.5g} to {finite.max():.5g}" if finite.size else "no number"


def _table(rows: list[Row], root: Path | None) -> Table:
    table = Table("file", "modality", "shape", "spacing mm", "axes", "values", "problem")
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut short cannot be found again
    for row in rows:
        inside = root is not None and row.path.is_relative_to(root)
        header = ("", "", "")
        if row.info is not None:
            spacing = " ".join(f"{side:.3g}" for side in row.info.spacing_mm)
            header = ("×".join(str(side) for side in row.info.shape), spacing, row.info.orientation)
        name = str(row.path.relative_to(root)) if inside and root else row.path.name
        problem = f"[red]{escape(row.problem)}[/red]" if row.problem else ""
        table.add_row(escape(name), row.modality, *header, row.values, problem)
    return table
