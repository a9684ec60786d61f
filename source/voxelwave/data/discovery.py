"""Which files a source names, and which of them are volumes."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from voxelwave.data.labels import label_map_reason
from voxelwave.data.modalities import Modality, UnusableVolume
from voxelwave.data.nifti import SUFFIXES, has_volume_suffix, read_channels, read_header
from voxelwave.errors import InputError


@dataclass(frozen=True)
class Source:
    """Where volumes of one modality are: a folder (searched to the bottom), glob, CSV list or single file."""

    path: str
    modality: str

    def __str__(self) -> str:
        return f"{self.modality} source '{self.path}'".lstrip()


@dataclass(frozen=True)
class VolumeFile:
    """A file that is said to hold a volume of `modality`."""

    path: Path
    modality: str


@dataclass(frozen=True)
class Refusal:
    """A file that is not used, and the short reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Selection:
    """The files to use, by modality, and those that are not."""

    accepted: dict[str, list[VolumeFile]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)


def home_expanded(path: str) -> Path:
    """Return `path` with ~ replaced; raises InputError for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"'{path}': there is no such home folder; write the path out") from None


def _real(path: Path) -> Path:
    # Path.resolve raises on a link that leads to itself; reading such a file says what is wrong with it.
    return Path(os.path.realpath(path))


def find_files(source: Source) -> list[VolumeFile]:
    """List the files of `source`, sorted (a CSV keeps its order), hidden ones left out, each file once.

    A CSV has a header with a column `path`, relative to the CSV. Where it has a column `modality`, rows of
    another modality are left out, so that one list can serve several sources; an empty cell belongs to every
    source, and a source with an empty modality takes every row.

    Raises:
        InputError: where nothing is found.
    """
    place = home_expanded(source.path)
    if place.is_dir():
        found, empty = _walk(place), "folder holds no"
    elif place.suffix.lower() == ".csv" and place.is_file():
        found, empty = _listed(place, source.modality), "list names no such"
    elif place.is_file():
        found, empty = [place] if has_volume_suffix(place) else [], "file is no"
    elif glob.has_magic(source.path):
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207
        found = [Path(match) for match in matches if has_volume_suffix(Path(match)) and Path(match).is_file()]
        empty = "pattern matches no"
    else:
        raise InputError(
            f"{source} does not exist (working folder: {Path.cwd()}): correct data.sources, or "
            f"generate heads with `voxelwave synthesize`"
        )
    if not found:
        raise InputError(f"{source}: the {empty} volume ({', '.join(SUFFIXES)})")
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(_real(path), path)
    return [VolumeFile(path, source.modality) for path in once.values()]


def accept_volumes(
    sources: Sequence[Source],
    modalities: Mapping[str, Modality],
    *,
    max_volumes_per_modality: int | None = None,
    check_content: bool = False,
) -> Selection:
    """Keep of all sources the files that are volumes, by header and name, or by their content where asked.

    The sources of a modality take turns, one file each, until they are used up or the modality has its
    maximum; so a maximum is shared as evenly as the sources allow. Checking the content reads every file: for
    hundreds, not thousands.

    Raises:
        InputError: for a source without files, or none of whose files can be used.
    """
    selection = Selection()
    for name in dict.fromkeys(source.modality for source in sources):
        accepted = selection.accepted.setdefault(name, [])
        used: set[Path] = set()
        turns = [
            _accepted(source, modalities[name], used, check_content, selection.refused)
            for source in dict.fromkeys(sources)
            if source.modality == name
        ]
        while turns and (max_volumes_per_modality is None or len(accepted) < max_volumes_per_modality):
            turn = turns.pop(0)
            if (file := next(turn, None)) is not None:
                accepted.append(file)
                turns.append(turn)
    return selection


def refusal_reason(file: VolumeFile, modality: Modality, *, check_content: bool) -> str | None:
    """Say why `file` cannot be used, or None."""
    try:
        reason = read_header(file.path).problem(modality.channels) or label_map_reason(file.path)
        if reason is None and check_content:
            read_channels(file.path, modality)
    except UnusableVolume as unusable:
        return str(unusable)
    return reason


def _accepted(
    source: Source, modality: Modality, used: set[Path], check_content: bool, refused: list[Refusal]
) -> Iterator[VolumeFile]:
    """Yield the usable files of one source that no other source gave; note the others in `refused`."""
    reasons: list[str] = []
    files = find_files(source)
    for file in files:
        if (real := _real(file.path)) in used:
            continue
        used.add(real)
        if reason := refusal_reason(file, modality, check_content=check_content):
            reasons.append(reason)
            refused.append(Refusal(file.path, reason))
        else:
            yield file
    if len(reasons) == len(files):
        raise InputError(
            f"{source}: none of its {len(files)} files can be used; "
            f"the first, {files[0].path.name}, is refused: {reasons[0]}"
        )


def _walk(folder: Path) -> list[Path]:
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        # Links to folders are followed, since data sets are often linked into place; each folder once ends a
        # circle.
        real = _real(Path(parent))
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if has_volume_suffix(path))


def _listed(table: Path, modality: str) -> list[Path]:
    found = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if "path" not in (rows.fieldnames or ()):
                raise InputError(f"list '{table}' needs a column 'path' in its first line, got {rows.fieldnames or []}")
            for row in rows:
                given = (row.get("modality") or "").strip().lower()
                if given and modality and given != modality:
                    continue
                path = table.parent / home_expanded((row["path"] or "").strip())
                if not path.is_file():
                    raise InputError(f"list '{table}', line {rows.line_num}: no file '{path}'")
                found.append(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"list '{table}' is not a CSV text in UTF-8: {error}") from error
    return found
