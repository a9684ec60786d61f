"""Which scans of a list are pairs: those of one session that show one head at one place, or each scan by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

from voxelwave.data.batches.placed_scans import Shown, open_scan, outline, shown_by_both
from voxelwave.data.batches.scan_pairs import Pair, named
from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.listing.selection import refusal_reason
from voxelwave.data.modalities import Modality
from voxelwave.data.store import is_stored
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import Config
from voxelwave.jobs.pretrain.data import CONTENT_IS_CHECKED_UP_TO

# By kind of pair the pairs of each group, a session of a subject: of two scans, or of one that is seen twice.
Groups = dict[str, list[list[Pair]]]
# By kind of pair, whose session each group is.
Subjects = dict[str, list[str]]


class LeftOut(NamedTuple):
    """What is not trained on: scans and pairs with the reason, and sessions with one scan."""

    unusable: list[str]
    apart: list[str]
    alone: list[str]


def find_pairs(config: Config, modalities: Mapping[str, Modality], console: Console) -> tuple[Groups, Subjects]:
    """Return the pairs of scans that show one head at one place, and whose; print what is left out and why.

    With at most 500 scans, or as `data.check_content` says, the values of all are read; else the fields of view alone
    tell of scans that are not stored whether they show the same.

    Raises InputError where no pair is left.
    """
    pairs, check = config.data.pairs, config.data.check_content
    assert pairs is not None
    two_scans = pairs.source == "scans"
    cases = [case for case in pairs.find_cases() if case.modality in modalities]
    if not cases:
        raise InputError(f"key 'data.pairs.cases': {pairs.cases} lists no scan of {' or '.join(modalities)}")
    read = len(cases) <= CONTENT_IS_CHECKED_UP_TO if check is None else check
    geometry, left = pairs.geometry(config.data.crop_size), LeftOut([], [], [])
    groups: Groups = {"+".join(kind): [] for kind in combinations_with_replacement(modalities, 2)}
    subjects: Subjects = {kind: [] for kind in groups}
    for (subject, session), files in _grouped(cases, list(modalities)):
        name = " ".join(filter(None, (subject, session)))
        # 1. What each scan of a group shows.
        shown: dict[VolumeFile, Shown] = {}
        for file in files:
            try:
                shown[file] = _shown(file, modalities[file.modality], read=read)
            except UnusableVolume as reason:
                left.unusable.append(f"{file.path}: {reason}")
                console.say(f"left out {left.unusable[-1]}")
        if two_scans and len(shown) == 1:
            left.alone.append(name)
        # 2. The pairs that show the same.
        found: dict[str, list[Pair]] = {}
        for one, other in combinations(shown, 2) if two_scans else ((file, file) for file in shown):
            try:
                shown_by_both(shown[one], shown[other], least_mm=geometry.shared_mm)
                found.setdefault(f"{one.modality}+{other.modality}", []).append((one, other))
            except UnusableVolume as reason:
                left.apart.append(f"{named(one, other)}: {reason}")
        for kind, of in found.items():
            groups[kind].append(of)
            subjects[kind].append(subject or name)
    for what, names in (("sessions with one scan alone", left.alone), ("pairs", left.apart)):
        if names:
            console.say(f"left out {what}: {len(names)}, such as {names[0]}")
    if not any(groups.values()):
        way_out = "; with source: views, pairs are two views of one scan" if two_scans else ""
        raise InputError(f"key 'data.pairs.cases': {_why_none(left, pairs.cases)}{way_out}")
    return {kind: of for kind, of in groups.items() if of}, subjects


def _grouped(cases: Sequence[Case], order: Sequence[str]) -> Iterator[tuple[tuple[str, str], list[VolumeFile]]]:
    """Yield subject, session and the scans of each session of a subject, in the `order` of their modalities."""
    groups: dict[tuple[str, str], list[VolumeFile]] = {}
    for case in cases:
        groups.setdefault((case.subject, case.session), []).append(VolumeFile(case.image, case.modality))
    for key, files in groups.items():
        yield key, sorted(files, key=lambda file: order.index(file.modality))


def _shown(file: VolumeFile, modality: Modality, *, read: bool) -> Shown:
    """Return where a scan shows something, or its field of view; raises UnusableVolume where it cannot be used."""
    if reason := refusal_reason(file, modality, check_content=False):
        raise UnusableVolume(reason)
    return open_scan(file, modality).shown if read or is_stored(file.path) else outline(file)


def _why_none(left: LeftOut, cases: str) -> str:
    if left.apart:
        return f"none of the {len(left.apart)} pairs of {cases} can be used; the first, {left.apart[0]}"
    if left.alone:
        return f"no session of a subject has two scans in {cases}, such as {left.alone[0]}"
    return f"none of the {len(left.unusable)} scans of {cases} can be used; the first, {left.unusable[0]}"
