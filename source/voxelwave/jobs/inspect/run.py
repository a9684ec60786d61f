"""What a folder of volumes holds, and which of them training would refuse: one row a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from voxelwave.data.listing.discovery import Source, base_folder, find_files
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.data.reading.volume import VolumeInfo
from voxelwave.data.recognition.recognise import recognise, told_beforehand
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.ops.files import absolute
from voxelwave.registry import MODALITIES


@dataclass(frozen=True)
class Inspected:
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

    Raises InputError where there is no volume at `path`, or no such modality.
    """
    if modality is not None:
        MODALITIES.get(modality)
    readers: dict[str, Modality] = {name: MODALITIES.build(name) for name in MODALITIES.names()}
    files = find_files(Source(path, modality or ""))
    root = absolute(base_folder(path))
    inspected = [_inspected(absolute(file.path), root, file.modality or None, readers) for file in files]
    refused = sum(of.problem is not None for of in inspected)
    (console or Console()).print(_table(inspected, root), f"{len(files)} files, {refused} with a problem")
    return refused


def _inspected(path: Path, root: Path, given: str | None, readers: Mapping[str, Modality]) -> Inspected:
    if is_stored(path):
        return _inspected_store(path)
    name, info, values, problem = given or "?", None, "", None
    try:
        info = read_header(path)
        told = told_beforehand(path, root if path.is_relative_to(root) else path.parent, given=given)
        name = told.modality or "?"
        if problem := info.problem():
            return Inspected(path, name, info, values, problem)
        volume = read_volume(path)
        values = _range(volume.array)
        told, _ = recognise(told, path, lambda: volume)
        if told.modality:
            name = told.modality
            problem = info.problem(readers[name].channels)
            if problem is None:
                readers[name](volume.array)
    except UnusableVolume as unusable:
        problem = str(unusable)
    return Inspected(path, name, info, values, problem)


def _inspected_store(path: Path) -> Inspected:
    """Read a stored volume whole, and with it check every chunk."""
    try:
        stored = StoredVolume(path)
        info = VolumeInfo(stored.shape, stored.affine, stored.dtype)
        return Inspected(path, stored.info.modality, info, _range(stored.read().astype(np.float32)))
    except UnusableVolume as unusable:
        return Inspected(path, problem=str(unusable))


def _range(array: np.ndarray) -> str:
    finite = array[np.isfinite(array)]
    return f"{finite.min():.5g} to {finite.max():.5g}" if finite.size else "no number"


def _table(inspected: list[Inspected], root: Path) -> Table:
    table = Table("file", "modality", "shape", "spacing mm", "axes", "values", "problem")
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut short cannot be found again
    for of in inspected:
        header = ("", "", "")
        if of.info is not None:
            spacing = " ".join(f"{side:.3g}" for side in of.info.spacing_mm)
            header = ("×".join(str(side) for side in of.info.shape), spacing, of.info.orientation)
        name = of.path.relative_to(root) if of.path.is_relative_to(root) else of.path
        problem = f"[red]{escape(of.problem)}[/red]" if of.problem else ""
        table.add_row(escape(str(name)), of.modality, *header, of.values, problem)
    return table
