"""Reconstructed volumes beside the files of k-space that they were made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from voxelwave.data.kspace.files import KSPACE_FOLDER, KspaceFile
from voxelwave.data.listing.discovery import base_folder, walk
from voxelwave.errors import InputError
from voxelwave.jobs.common.kspace_files import SUFFIX, find_kspace
from voxelwave.ops.files import absolute

EVALUATION = "evaluation"


class Pair(NamedTuple):
    """A reconstruction and the file that holds its target; `name` is the place of the latter below its source."""

    name: str
    reconstruction: Path
    file: KspaceFile


def result_places(paths: Sequence[Path], source: str) -> list[Path]:
    """Return where the result of each file of `source` lies in its folder: as the file below `source`.

    Its name ends in `.h5`. A folder `kspace` on the way is left out, as the challenge does.
    """
    root = base_folder(source)
    below = [path.relative_to(root) if path.is_relative_to(root) else Path(path.name) for path in paths]
    return [
        Path(*(part for part in place.parent.parts if part != KSPACE_FOLDER), place.with_suffix(SUFFIX).name)
        for place in below
    ]


def kspace_outside(source: str, out: Path) -> list[Path]:
    """Return the files of k-space of `source` but for those in `out`, which are results: it may lie in their folder.

    Raises InputError where there is none.
    """
    paths = find_kspace(source)
    outside = [path for path in paths if not absolute(path).is_relative_to(absolute(out))]
    if not outside:
        raise InputError(f"{out} holds all k-space of '{source}': give another folder for the reconstructions")
    return outside


def pair_files(out: Path, data: str) -> list[Pair]:
    """Return every reconstruction below `out` with its file of `data`, in the order of these.

    The reconstruction lies at the place that `result_places` says, or directly in `out` where no other file has the
    name. Files without a target need none.
    Raises InputError for a target without a reconstruction, a reconstruction without a target, and a file that cannot
    be used.
    """
    if not out.is_dir():
        raise InputError(f"{out} is no folder: give the one that `voxelwave reconstruct run` wrote")
    paths = kspace_outside(data, out)
    names = Counter(path.name for path in paths)
    found = {path for path in walk(out, _is_result) if path.relative_to(out).parts[0] != EVALUATION}
    pairs, missing, left = list[Pair](), list[Path](), set(found)
    for path, place in zip(paths, result_places(paths, data), strict=True):
        choices = [out / place, *([out / path.name] if names[path.name] == 1 else [])]
        reconstruction = next((choice for choice in choices if choice in found), None)
        file = KspaceFile(path)
        if file.info.has_target and reconstruction is None:
            missing.append(path)
        if file.info.has_target and reconstruction is not None:
            pairs.append(Pair(place.as_posix(), reconstruction, file))
            left.discard(reconstruction)
        elif reconstruction is not None:
            raise InputError(f"{reconstruction}: {path} has no target that it could be compared with")
    if missing:
        raise InputError(f"{missing[0]} has no reconstruction in {out}{_more(missing)}: reconstruct all of '{data}'")
    if left:
        first = min(left)
        raise InputError(f"{first} is of no file of '{data}'{_more(left)}: give its data, too, or move it away")
    if not pairs:
        raise InputError(f"'{data}' holds no targets to compare with")
    return pairs


def _is_result(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIX)


def _more(of: Sequence[Path] | set[Path]) -> str:
    return f", and {len(of) - 1} more" if len(of) > 1 else ""
