"""Which files a source holds: a folder, a glob, a list, a file, or a prepared folder."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from voxelwave.data.listing.manifest import MANIFEST, is_prepared, stored_rows
from voxelwave.data.reading.nifti import SUFFIXES as NIFTI_SUFFIXES
from voxelwave.data.reading.nrrd import NRRD_SUFFIXES
from voxelwave.data.reading.unreadable import unread_format
from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.data.store import SUFFIX as STORE_SUFFIX
from voxelwave.errors import InputError
from voxelwave.ops.files import real_path
from voxelwave.ops.tables import read_csv
from voxelwave.registry import MODALITIES

SUFFIXES = (*NIFTI_SUFFIXES, STORE_SUFFIX)
TO_PREPARE = (*NRRD_SUFFIXES, ".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Source:
    """Where volumes of one modality are: a folder (searched to the bottom), glob, CSV list or single file.

    A folder that `voxelwave prepare` wrote gives what its manifest accepts; `split` takes "train" or "test" of it.
    """

    path: str
    modality: str
    split: str | None = None

    def __str__(self) -> str:
        of = f", split '{self.split}'" if self.split else ""
        return f"{self.modality} source '{self.path}'{of}".lstrip()


@dataclass(frozen=True)
class VolumeFile:
    """A file that is said to hold a volume of `modality`."""

    path: Path
    modality: str


def base_folder(path: str) -> Path:
    """Return the folder below which a source has its files: of a glob what stands before its first pattern."""
    place = home_expanded(path)
    if place.is_dir():
        return place
    fixed = takewhile(lambda part: not glob.has_magic(part), place.parent.parts)
    return place.parent if place.is_file() else Path(*fixed)


def has_volume_suffix(path: Path) -> bool:
    """Tell whether the name of `path` ends like a volume that can be trained on."""
    return path.name.lower().endswith(SUFFIXES)


def is_of_another_format(path: Path) -> bool:
    """Tell by its name whether `path` is a scan of a format that nothing reads, or that is read to prepare alone."""
    return path.name.lower().endswith(TO_PREPARE) or unread_format(path) is not None


def no_file(path: Path) -> str:
    """Say that what a list names is no file, and what to do where it is a folder."""
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises for a name that is too long
        return (
            f"'{path}' is a folder: `voxelwave prepare` reads the DICOM series in it, and a list names what it stored"
        )
    return f"no file '{path}'"


def home_expanded(path: str) -> Path:
    """Return `path` with ~ replaced; raises InputError for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"'{path}': there is no such home folder; write the path out") from None


def find_files(source: Source, *, others: list[Path] | None = None) -> list[VolumeFile]:
    """List the files of `source`, sorted (a CSV keeps its order), hidden ones left out, each file once.

    A CSV has a header with a column `path`, relative to the CSV. Where it has a column `modality`, rows of
    another modality are left out, so that one list can serve several sources; an empty cell belongs to every
    source. A source with an empty modality takes every row, and every image of a prepared folder. A file then has the
    modality that the list or the manifest says, "" where none is said or two rows disagree. Scans of formats that are
    not read here are appended to `others`.

    Raises InputError where nothing is found.
    """
    place = home_expanded(source.path)
    if source.split is not None and not (place / MANIFEST).is_file():
        raise InputError(f"{source}: a split needs a folder that `voxelwave prepare --holdout` wrote")
    way_out = ""
    if is_prepared(place):
        found, empty = _prepared(place, source), "prepared data set has no accepted"
    elif place.suffix.lower() == ".csv" and place.is_file():
        found, empty = _listed(place, source.modality), "list names no such"
    else:

        def wanted(path: Path) -> bool:
            if others is not None and is_of_another_format(path):
                others.append(path)
            return has_volume_suffix(path)

        paths, empty = files_at(source, wanted)
        found = [VolumeFile(path, source.modality) for path in paths]
        if others is None:
            way_out = "; `voxelwave prepare` makes such volumes of DICOM series and NRRD"
    if not found:
        raise InputError(f"{source}: the {empty} volume ({', '.join(SUFFIXES)}){way_out}")
    once: dict[Path, VolumeFile] = {}
    for file in found:
        first = once.setdefault(real_path(file.path), file)
        if file.modality != first.modality:
            once[real_path(file.path)] = VolumeFile(first.path, source.modality)
    return list(once.values())


def files_at(source: Source, wanted: Callable[[Path], bool]) -> tuple[list[Path], str]:
    """Return the `wanted` files of a folder, to its bottom, of a glob or of a file, and how to say that there is none.

    Raises InputError where there is no such place.
    """
    place = home_expanded(source.path)
    if place.is_dir():
        return walk(place, wanted), "folder holds no"
    if place.is_file():
        return [place] if wanted(place) else [], "file is no"
    if glob.has_magic(source.path):
        # Path.glob takes no absolute pattern.
        matches = map(Path, sorted(glob.glob(str(place), recursive=True)))  # noqa: PTH207
        return [path for path in matches if wanted(path) and path.is_file()], "pattern matches no"
    raise InputError(
        f"{source} does not exist (working folder: {Path.cwd()}): give a file, a folder, a glob in quotes or a CSV "
        f"list, or generate heads with `voxelwave synthesize`"
    )


def _prepared(folder: Path, source: Source) -> list[VolumeFile]:
    return [
        VolumeFile(folder / row.output, row.modality)
        for row in stored_rows(folder)[0]
        if source.modality in ("", row.modality) and source.split in (None, row.split)
    ]


def walk(
    folder: Path, wanted: Callable[[Path], bool] = has_volume_suffix, *, closed: list[OSError] | None = None
) -> list[Path]:
    """List the `wanted` files of `folder` and all folders below it, sorted, without hidden ones.

    Of the derivatives of a BIDS data set, label maps alone are listed: its images are there already. Why a folder
    cannot be opened is appended to `closed`; where that is not given, raises InputError.
    """

    def cannot(error: OSError) -> None:
        if closed is None:
            raise InputError(f"cannot open the folder {error.filename}: {error.strerror}")
        closed.append(error)

    found, seen, derivatives = [], set(), set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=cannot):
        # Links to folders are followed, since data sets are often linked into place; each folder once ends a
        # circle.
        place = Path(parent)
        real = real_path(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if "dataset_description.json" in names and "derivatives" in folders:
            derivatives.add(place / "derivatives")
        derived = any(place.is_relative_to(other) for other in derivatives)
        for name in names:
            path = place / name
            if not name.startswith(".") and wanted(path) and not (derived and label_map_reason(path) is None):
                found.append(path)
    return sorted(found)


def _listed(table: Path, modality: str) -> list[VolumeFile]:
    found = []
    rows = read_csv(table)
    columns = next(rows, (0, []))[1]
    if "path" not in columns:
        raise InputError(f"list '{table}' needs a column 'path' in its first line, got {columns}")
    for line, cells in rows:
        if not any(map(str.strip, cells)):
            continue  # as spreadsheets leave them
        row = dict(zip(columns, cells, strict=False))
        given = row.get("modality", "").strip().lower()
        if given and given not in MODALITIES.names():
            known = ", ".join(MODALITIES.names())
            raise InputError(f"list '{table}', line {line}: modality '{given}' is none of {known}")
        if given and modality and given != modality:
            continue
        path = table.parent / home_expanded(row.get("path", "").strip())
        if not os.path.isfile(path):  # noqa: PTH113  # Path.is_file raises for a name that is too long
            raise InputError(f"list '{table}', line {line}: {no_file(path)}")
        found.append(VolumeFile(path, given or modality))
    return found
