"""The files of k-space at a place."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from voxelwave.data.kspace.files import IMAGE_FOLDER, KSPACE_FOLDER, KspaceFile
from voxelwave.data.kspace.hdf5 import opened
from voxelwave.data.kspace.twix import SUFFIX as TWIX
from voxelwave.data.kspace.twix import is_twix
from voxelwave.data.listing.discovery import home_expanded, walk
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.ops.files import content_mark, real_path
from voxelwave.ops.seeding import number_and_checksum

SUFFIX = ".h5"
SUBJECT = "patient_id"
RESULTS = "reconstruct.json"  # the record of a folder of reconstructions
MARKED_BLOCKS = 16  # parts of a file that its mark follows from


def find_kspace(source: str) -> list[Path]:
    """Return the files of k-space of a folder (to its bottom), of a glob, or the one file, sorted.

    A folder `image` beside a folder `kspace` holds the images of those files, and is left out, as are folders below it
    that reconstructions were written to. A file that links lead to, too, is there once.
    Raises InputError where there is none.
    """
    place = home_expanded(source)
    if place.is_dir():
        found = [path for path in walk(place, _is_kspace) if not _is_result(path, place)]
    elif place.is_file():
        found = [place]
    else:
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207
        found = [path for path in map(Path, matches) if path.is_file() and _is_kspace(path)]
    if not found:
        raise InputError(
            f"'{source}' holds no k-space ({SUFFIX}, or {TWIX} of Siemens; working folder: {Path.cwd()}): give a file, "
            "a folder or a glob in quotes, or make some with `voxelwave reconstruct synthesize`"
        )
    return list({real_path(path): path for path in reversed(found)}.values())[::-1]


def subject_of(path: Path) -> str:
    """Return whose scan a file is, as an attribute of fastMRI's files says; "" where nothing does."""
    try:
        with opened(path) as file:
            said = file.attrs.get(SUBJECT, "")
    except (UnusableVolume, OSError):  # of formats that say it elsewhere, or not
        return ""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)


def drawn_to_validate(paths: Sequence[Path], count: int, generator: torch.Generator) -> set[int]:
    """Draw the numbers of about `count` files to validate on: all of a subject or none, and one subject is left."""
    groups: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        groups.setdefault(subject_of(path) or f"{number} {path}", []).append(number)
    order = list(groups.values())
    drawn = set[int]()
    for group in torch.randperm(len(order), generator=generator).tolist()[:-1]:
        if len(drawn) < count:
            drawn.update(order[group])
    return drawn


def _is_result(path: Path, source: Path) -> bool:
    return any((folder / RESULTS).exists() for folder in path.parents if folder != source and source in folder.parents)


def _is_kspace(path: Path) -> bool:
    images = path.parent.name == IMAGE_FOLDER and (path.parent.parent / KSPACE_FOLDER).is_dir()
    name = path.name.lower()
    return (name.endswith(SUFFIX) or (name.endswith(TWIX) and is_twix(path))) and not images


def open_kspace(
    paths: Sequence[Path],
    *,
    skip_unusable: bool,
    console: Console,
    check: Callable[[KspaceFile], None] = lambda file: None,
) -> list[KspaceFile]:
    """Open files; one that cannot be used is an error, or is said and left out with `skip_unusable`.

    `check` raises InputError for a file that is of no use for what it is to be used for.
    Raises InputError where none is left, or for the first that cannot be used.
    """
    files, refused = [], list[str]()
    for path in paths:
        try:
            check(file := KspaceFile(path))
            files.append(file)
        except InputError as error:
            if not skip_unusable:
                raise InputError(f"{error}; data.skip_unusable=true leaves such files out") from None
            refused.append(str(error))
    if refused:
        console.say(f"cannot be used, left out: {len(refused)} of {len(paths)}", *(f"  {line}" for line in refused))
    if not files:
        raise InputError(f"none of the {len(paths)} files of k-space can be used; the first, {refused[0]}")
    return files


def fingerprint(named: Mapping[str, Sequence[Path]]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the number of files with a checksum of their names, and marks of what they hold."""
    names = {group: number_and_checksum([path.name for path in paths]) for group, paths in named.items()}
    marks = {
        group: {str(path): content_mark(path, blocks=MARKED_BLOCKS) for path in paths} for group, paths in named.items()
    }
    return names, marks
