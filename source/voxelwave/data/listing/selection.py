"""Which of the files of all sources are used, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from voxelwave.data.listing.discovery import Source, VolumeFile, find_files
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.nifti import read_header, read_volume
from voxelwave.data.reading.unreadable import unread_format
from voxelwave.data.reading.volume import SAME_SPACING_MM, Spacing, spacing_of, three
from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.data.recognition.rules import Told, contradiction, modality_by_name
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.ops.files import real_path


@dataclass(frozen=True)
class Refusal:
    """A file that is not used, and the short reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Selection:
    """The files to use, by modality and there by source, and those that are not."""

    accepted: dict[str, list[list[VolumeFile]]] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)

    def files(self) -> dict[str, list[VolumeFile]]:
        """Return the files of each modality, source by source."""
        return {name: [file for of in sources for file in of] for name, sources in self.accepted.items()}

    def sizes(self) -> dict[str, list[int]]:
        """Return the numbers of files of the sources of each modality, of those that have any."""
        return {name: [len(of) for of in sources if of] for name, sources in self.accepted.items()}


def accept_volumes(
    sources: Sequence[Source],
    modalities: Mapping[str, Modality],
    *,
    max_volumes_per_modality: int | None = None,
    check_content: bool = False,
    spacing_mm: Spacing | None = None,
) -> Selection:
    """Select the files of all sources that can be used, by header and name, and by their values where asked.

    The sources of a modality take turns, one file each, until they are used up or the modality has its
    maximum; so a maximum is shared as evenly as the sources allow. Stored volumes have to be at `spacing_mm`.
    Checking the content reads every file that is not stored: for hundreds, not thousands.

    Raises InputError for a source without files, or none of whose files can be used.
    """
    selection = Selection()
    for name in dict.fromkeys(source.modality for source in sources):
        own = [source for source in dict.fromkeys(sources) if source.modality == name]
        accepted: list[list[VolumeFile]] = [[] for _ in own]
        selection.accepted[name] = accepted
        used: set[Path] = set()
        check = partial(refusal_reason, modality=modalities[name], check_content=check_content, spacing_mm=spacing_mm)
        turns = [
            (_accepted(source, check, used, selection.refused), of) for source, of in zip(own, accepted, strict=True)
        ]
        while turns and (max_volumes_per_modality is None or sum(map(len, accepted)) < max_volumes_per_modality):
            turn, of = turns.pop(0)
            if (file := next(turn, None)) is not None:
                of.append(file)
                turns.append((turn, of))
    return selection


def refusal_reason(
    file: VolumeFile, modality: Modality, *, check_content: bool, spacing_mm: Spacing | None = None
) -> str | None:
    """Say why `file` cannot be used, or None."""
    try:
        if is_stored(file.path):
            return stored_refusal(StoredVolume(file.path), file.modality, modality, spacing_mm=spacing_mm)
        reason = read_header(file.path).problem(modality.channels) or label_map_reason(file.path)
        # A name cannot say more than whose source it is in, but for what is neither.
        if reason is None and (told := modality_by_name(file.path, file.path.parent)).modality == "":
            reason = f"neither MRI nor CT by {told.rule}: leave it out, or rename it"
        if reason is None and check_content:
            volume = read_volume(file.path, channels=modality.channels)
            told = Told(file.modality, "its source")
            reason = label_map_reason(file.path, volume.array) or contradiction(told, volume.array)
            if reason is None:
                modality(volume.array)
    except UnusableVolume as unusable:
        return str(unusable)
    return reason


def stored_refusal(
    stored: StoredVolume, name: str, modality: Modality, *, spacing_mm: Spacing | None = None
) -> str | None:
    """Say why a stored volume cannot be used as modality `name`, scaled by `modality`, or None."""
    info = stored.info
    if info.modality != name:
        return f"stored as {info.modality}"
    if info.settings != modality.baked():
        return f"prepared with {info.settings}, and {modality.baked()} are asked for: prepare it again"
    spacing = spacing_of(stored.affine)
    if spacing_mm is not None and not np.allclose(spacing, three(spacing_mm), rtol=0, atol=SAME_SPACING_MM):
        given = " × ".join(f"{side:.3g}" for side in spacing)
        return f"prepared at {given} mm, and spacing_mm {spacing_mm} is asked for: prepare it again, or leave that out"
    return None


def _suffix(path: Path) -> str:
    return unread_format(path) or path.suffix.lower()


def _accepted(
    source: Source, check: Callable[[VolumeFile], str | None], used: set[Path], refused: list[Refusal]
) -> Iterator[VolumeFile]:
    """Yield the usable files of one source that no other source holds; append the others to `refused`."""
    reasons: list[str] = []
    others: list[Path] = []
    files = find_files(source, others=others)
    for suffix, of in groupby(sorted(others, key=lambda path: (_suffix(path), path)), key=_suffix):
        first, *more = of
        also = f", as are {len(more)} other such files of '{source.path}'" if more else ""
        refused.append(Refusal(first, f"of a format that is not trained on ({suffix}){also}: `voxelwave prepare` it"))
    for file in files:
        if (real := real_path(file.path)) in used:
            continue
        used.add(real)
        if reason := check(file):
            reasons.append(reason)
            refused.append(Refusal(file.path, reason))
        else:
            yield file
    if len(reasons) == len(files):
        raise InputError(
            f"{source}: none of its {len(files)} files can be used; "
            f"the first, {files[0].path.name}, is refused: {reasons[0]}"
        )
