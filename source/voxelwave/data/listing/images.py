"""Images to predict or to embed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from voxelwave.data.listing.cases import CASES, Case, columns_of, find_cases, prepared_cases
from voxelwave.data.listing.discovery import Source, base_folder, files_at, find_files, home_expanded
from voxelwave.data.listing.manifest import is_prepared
from voxelwave.data.listing.scans import Scan, could_be_a_scan, scans_among
from voxelwave.data.recognition.labels import label_map_reason, without_suffix
from voxelwave.data.store import is_stored
from voxelwave.errors import InputError
from voxelwave.registry import MODALITIES


class Listed(NamedTuple):
    """The images at a source, and apart from them what is passed over, each with its path and the reason."""

    cases: list[Case]
    label_maps: Sequence[str] = ()
    unread: Sequence[str] = ()
    others: Sequence[str] = ()  # of another modality than the one asked for


def find_images(source: str, modality: str | None) -> Listed:
    """List the images at `source`, in every format that is read.

    `source` is a file, a folder, a glob, a CSV list of files or of cases, or a folder that `voxelwave prepare` wrote.
    The modality of an image is "" where neither `modality` nor a list says it; an image of another modality than
    `modality`, as a list says, is passed over.

    Raises InputError where there is no image, or no such modality.
    """
    if modality is not None:
        MODALITIES.get(modality)
    place = home_expanded(source)
    if (place / CASES).is_file() or _lists_cases(place):
        return _of_modality(Listed(find_cases(source, targets=(), needs_modality=False)), modality, place)
    if is_prepared(place):
        # As cases of a task they could have but one label map each.
        return _of_modality(Listed(prepared_cases(place, label=None)), modality, place)
    of, root = Source(source, ""), base_folder(source)
    if place.suffix.lower() == ".csv" and place.is_file():
        listed = {file.path: file.modality for file in find_files(of)}
        files, empty = list(listed), "list names no"
    else:
        files, empty = files_at(of, lambda path: could_be_a_scan(path) or is_stored(path))
        listed = {}
    stored = {path for path in files if is_stored(path)}
    scans, unusable = scans_among([path for path in files if path not in stored], root)
    unread = [f"{scan.path}: {reason}" for scan, reason in unusable]
    scans += [Scan(path, root) for path in stored]
    order: dict[Path, int] = {}
    if place.suffix.lower() == ".csv":
        # A list has its own order, and what it names is to be read, whatever its name: reading says what is wrong.
        order = {path: number for number, path in enumerate(files)}
        told = {path for scan in scans for path in scan.files} | {scan.path for scan, _ in unusable}
        scans += [Scan(path, root) for path in files if path not in told]
    cases, label_maps = [], []
    for scan in sorted(scans, key=lambda scan: (order.get(scan.files[0], 0), scan.name)):
        # The folder of a series may be named after what is to be seen in it.
        if scan.series is None and (reason := label_map_reason(scan.path)):
            label_maps.append(f"{scan.path}: {reason}")
            continue
        below = root if scan.path.is_relative_to(root) else scan.path.parent
        named = listed.get(scan.files[0], "")
        cases.append(Case(without_suffix(scan.path.name), scan.path, named, scan.subject(below), series=scan.series))
    if not cases:
        if label_maps:
            raise InputError(f"'{source}' holds label maps alone: {label_maps[0]}")
        raise InputError(f"{of}: the {empty} scan that can be read" + (f"; the first, {unread[0]}" if unread else ""))
    return _of_modality(Listed(cases, label_maps, unread), modality, place)


def _of_modality(listed: Listed, modality: str | None, place: Path) -> Listed:
    """Pass over images of another modality, and take the others for it; raises InputError where there is none."""
    if modality is None:
        return listed
    own = [replace(case, modality=modality) for case in listed.cases if case.modality in ("", modality)]
    if not own:
        raise InputError(f"{place} holds no scan of modality {modality}")
    others = [f"{case.image}: {case.modality}" for case in listed.cases if case.modality not in ("", modality)]
    return listed._replace(cases=own, others=others)


def _lists_cases(place: Path) -> bool:
    """Tell a list of cases, whose first line has a column `image`, from one of files, which has `path`."""
    if place.suffix.lower() != ".csv" or not place.is_file():
        return False
    return "image" in columns_of(place)
