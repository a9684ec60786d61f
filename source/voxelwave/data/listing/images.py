"""Images to predict or to embed."""

from __future__ import annotations

from pathlib import Path

from voxelwave.data.listing.cases import CASES, Case, find_cases, prepared_cases
from voxelwave.data.listing.discovery import Source, find_files, home_expanded
from voxelwave.data.listing.manifest import is_prepared
from voxelwave.data.recognition.labels import label_map_reason, without_suffix
from voxelwave.data.recognition.rules import subject_by_name
from voxelwave.errors import InputError
from voxelwave.registry import MODALITIES


def find_images(source: str, modality: str | None) -> tuple[list[Case], list[str]]:
    """List the images at `source`, and apart from them the files whose names tell that they are label maps.

    `source` is a file, a folder, a glob, a CSV list of files or of cases, or a folder that `voxelwave prepare` wrote.
    The modality of an image is "" where neither `modality` nor a list says it.

    Raises InputError where there is no image, or no such modality.
    """
    if modality is not None:
        MODALITIES.get(modality)
    place = home_expanded(source)
    if (place / CASES).is_file() or _lists_cases(place):
        return find_cases(source, modality=modality or ""), []
    if is_prepared(place):
        # As cases of a task they could have but one label map each.
        cases = [case for case in prepared_cases(place, label=None) if modality in (None, case.modality)]
        if not cases:
            raise InputError(f"{place} holds no scan{f' of modality {modality}' if modality else ''}")
        return cases, []
    root = place if place.is_dir() else place.parent
    cases, label_maps = [], []
    for file in find_files(Source(source, modality or "")):
        if reason := label_map_reason(file.path):
            label_maps.append(f"{file.path}: {reason}")
            continue
        subject = subject_by_name(file.path, root if file.path.is_relative_to(root) else file.path.parent)
        cases.append(Case(without_suffix(file.path.name), file.path, file.modality, subject))
    if not cases:
        raise InputError(f"'{source}' holds label maps alone: {label_maps[0]}")
    return cases, label_maps


def _lists_cases(place: Path) -> bool:
    """Tell a list of cases, whose first line has a column `image`, from one of files, which has `path`."""
    if place.suffix.lower() != ".csv" or not place.is_file():
        return False
    with place.open(encoding="utf-8-sig", errors="replace") as file:
        return "image" in [column.strip() for column in file.readline().split(",")]
