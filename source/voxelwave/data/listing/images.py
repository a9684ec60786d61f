"""Images to predict or to embed, and which modality each of them is."""

from __future__ import annotations

import glob
from pathlib import Path

from voxelwave.data.listing.cases import CASES, Case, find_cases
from voxelwave.data.listing.discovery import Source, find_files, home_expanded
from voxelwave.data.listing.manifest import DATASET, LABEL, MANIFEST, read_manifest
from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.recognition.labels import label_map_reason, without_suffix
from voxelwave.data.recognition.rules import contradiction, modality_by_content, modality_by_name, subject_by_name
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.registry import MODALITIES


def find_images(source: str, modality: str | None) -> tuple[list[Case], list[str]]:
    """List the images at `source`, and the label maps among them (by name), which are none.

    `source` is a file, a folder, a glob, a CSV list of files or of cases, or a folder that `voxelwave prepare` wrote.

    An image whose modality neither `modality` nor a list tells has "".

    Raises InputError where there is nothing, or no such modality.
    """
    if modality is not None and modality not in MODALITIES.names():
        raise InputError(f"unknown modality '{modality}'; known: {', '.join(MODALITIES.names())}")
    place = home_expanded(source)
    if not place.exists() and not glob.has_magic(source):
        raise InputError(f"'{source}' does not exist: give a file, a folder, a glob in quotes, or a CSV list")
    if (place / CASES).is_file() or _lists_cases(place):
        return find_cases(source, modality=modality or ""), []
    if (place / DATASET).is_file():
        return _prepared(place, modality), []
    files = [file.path for file in find_files(Source(source, modality or ""))]
    said = _said_by_list(source) if place.suffix.lower() == ".csv" else {}
    root = place if place.is_dir() else place.parent
    cases, label_maps = [], []
    for path in files:
        if reason := label_map_reason(path):
            label_maps.append(f"{path}: {reason}")
            continue
        subject = subject_by_name(path, root if path.is_relative_to(root) else path.parent)
        cases.append(Case(without_suffix(path.name), path, modality or said.get(path, ""), subject))
    if not cases:
        raise InputError(f"'{source}' holds label maps alone: {label_maps[0]}")
    return cases, label_maps


def modality_of(image: Path, source: str) -> str:
    """Tell the modality as `voxelwave prepare` does; raises UnusableVolume where nothing tells it."""
    if is_stored(image):
        return StoredVolume(image).info.modality
    root = home_expanded(source)
    told, array = modality_by_name(image, root if root.is_dir() else image.parent), read_volume(image).array
    if told.modality is None:
        told = modality_by_content(array)
    if problem := contradiction(told, array):
        raise UnusableVolume(problem)
    if not told.modality:
        what = "neither MRI nor CT by " if told.modality == "" else "modality unknown: "
        raise UnusableVolume(f"{what}{told.rule}; say which with --modality")
    return told.modality


def _prepared(folder: Path, modality: str | None) -> list[Case]:
    """List the images of a prepared folder; as cases of a task they could have but one label map each."""
    rows = [row for row in read_manifest(folder / MANIFEST) if row.accepted and row.modality != LABEL]
    if not (rows := [row for row in rows if modality in (None, row.modality)]):
        raise InputError(f"{folder} holds no scan{f' of modality {modality}' if modality else ''}")
    return [
        Case(without_suffix(Path(row.output).name), folder / row.output, row.modality, row.subject, split=row.split)
        for row in rows
    ]


def _lists_cases(place: Path) -> bool:
    """Tell a list of cases, whose first line has a column `image`, from one of files, which has `path`."""
    if place.suffix.lower() != ".csv" or not place.is_file():
        return False
    with place.open(encoding="utf-8-sig", errors="replace") as file:
        return "image" in [column.strip() for column in file.readline().split(",")]


def _said_by_list(table: str) -> dict[Path, str]:
    """Return the modality of the files of a list that says it: those that it gives for no other modality."""
    given: dict[Path, list[str]] = {}
    for name in MODALITIES.names():
        try:
            for file in find_files(Source(table, name)):
                given.setdefault(file.path, []).append(name)
        except InputError:
            continue  # no file of this modality
    return {path: names[0] for path, names in given.items() if len(names) == 1}
