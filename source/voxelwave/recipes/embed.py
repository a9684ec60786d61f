"""Embedding: a vector for every scan, by a pretrained backbone, in one file."""

from __future__ import annotations

import glob
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from voxelwave import __version__
from voxelwave.data.cases import CASES, Case, find_cases
from voxelwave.data.discovery import Source, find_files, home_expanded
from voxelwave.data.labels import label_map_reason, without_suffix
from voxelwave.data.manifest import DATASET, LABEL, MANIFEST, read_manifest
from voxelwave.data.modalities import UnusableVolume
from voxelwave.data.nifti import read_volume
from voxelwave.data.rules import modality_by_content, modality_by_name, subject_by_name
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.downstream.embedding import embed_volume, fitted_size
from voxelwave.downstream.embedding_table import check_table, write_table
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import InputError
from voxelwave.registry import MODALITIES


def embed(
    weights: str | Path, source: str, out: Path, *, modality: str | None = None, console: Console | None = None
) -> int:
    """Write the embedding of every scan at `source` to `out`, and return how many files could not be used.

    Args:
        weights: what `load_backbone` takes.
        source: a file, a folder, a glob, a CSV list of files or of cases, or a folder that `voxelwave prepare` wrote.
        out: .parquet, .csv or .npz.
        modality: of every scan that does not say its own; None tells it as `voxelwave inspect` does.

    Raises InputError where nothing can be embedded.
    """
    console = console or Console()
    # 1. What is asked for, before anything is computed.
    check_table(out)
    features = load_backbone(weights).to(best_device()).eval()
    reader, size = ScanReader(features), fitted_size(features)
    seen = [name for name in MODALITIES.names() if MODALITIES.get(name).channels in features.in_channels]
    cases, label_maps = find_scans(source, modality)

    # 2. One scan after the other.
    embedded, vectors, refused = [], [], []
    for case in track(cases, "embedded scans", console=Console(stderr=True)):
        try:
            told = case.modality or _told(case.image, source)
            if told not in seen:
                raise UnusableVolume(f"{told}, and the backbone takes {' and '.join(seen)}")
            vectors.append(embed_volume(features, reader(case.image, told).volume, size=size))
            embedded.append(Case(case.name, case.image, told, case.subject, targets=case.targets))
        except UnusableVolume as unusable:
            refused.append(f"{case.image}: {unusable}")

    # 3. The table, and what is not in it.
    for title, lines in (("label maps, left out", label_maps), ("cannot be used", refused)):
        if lines:
            console.print(
                "\n  ".join([f"{title}: {len(lines)}", *lines]), markup=False, highlight=False, soft_wrap=True
            )
    if not embedded:
        raise InputError(f"none of the {len(cases)} files at '{source}' can be used")
    write_table(out, embedded, torch.stack(vectors).numpy(), features, version=__version__)
    counts = ", ".join(f"{count} {name}" for name, count in Counter(case.modality for case in embedded).items())
    console.print(
        f"{out}: {counts}, {features.channels[-1]} numbers each", markup=False, highlight=False, soft_wrap=True
    )
    return len(refused)


def best_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or torch.device(
        "cpu"
    )


def find_scans(source: str, modality: str | None) -> tuple[list[Case], list[str]]:
    """List the scans at `source`, and the label maps among them (by name), which are no scans.

    A scan whose modality neither `modality` nor a list tells has "".

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


def _told(path: Path, source: str) -> str:
    """Tell the modality as `voxelwave inspect` does; raises UnusableVolume where nothing tells it."""
    if is_stored(path):
        return StoredVolume(path).info.modality
    place = home_expanded(source)
    told = modality_by_name(path, place if place.is_dir() else path.parent)
    if told.modality is None:
        told = modality_by_content(read_volume(path).array)
    if not told.modality:
        raise UnusableVolume(f"neither MRI nor CT as far as can be told ({told.rule}): say which with --modality")
    return told.modality
