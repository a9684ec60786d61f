"""What `voxelwave prepare` says at its end, and the contact sheet that it leaves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from voxelwave.data.listing.manifest import LABEL, MANIFEST, Row
from voxelwave.data.recognition.rules import own_words
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare.contact_sheet import Entry, contact_sheet
from voxelwave.jobs.prepare.work import picture_of
from voxelwave.ops.files import write_text

CONTACT_SHEET = "contact_sheet.html"
LISTED = 10


def spread_subject(rows: Sequence[Row]) -> tuple[str, list[str]] | None:
    """Return a subject of two or more folders that are named after something, and hold another subject each.

    It may be a name that several persons share, such as that of a plane in `patient07/upper.nii` of every patient.
    """
    folders: dict[str, set[str]] = {}
    subjects: dict[str, set[str]] = {}
    for row in rows:
        folder = Path(row.file).parent
        # That of a DICOM series is told by its header, and that of BIDS by a folder.
        if row.accepted and Path(row.file).suffix and row.subject.split("/")[-1] not in folder.parts:
            subjects.setdefault(str(folder), set()).add(row.subject)
            if own_words(folder.name):
                folders.setdefault(row.subject, set()).add(str(folder))
    for subject, of in sorted(folders.items()):
        shared = sorted(folder for folder in of if len(subjects[folder]) > 1)
        if len(shared) > 1:
            return subject, [Path(folder).name for folder in shared]
    return None


def print_summary(rows: Sequence[Row], out: Path, *, complete: bool, console: Console, held_out: bool = False) -> int:
    """Say what became of all files, and return how many could not be read."""
    accepted = Counter(row.modality for row in rows if row.accepted)
    by_rule = Counter(
        (row.modality, _kind_of_rule(row.told_by)) for row in rows if row.accepted and row.modality != LABEL
    )
    table = Table("modality", "told by", "volumes", title="accepted", title_justify="left")
    table.columns[2].justify = "right"
    for (modality, rule), count in sorted(by_rule.items()):
        table.add_row(escape(modality), escape(rule), str(count))
    console.print(table)
    _list([row for row in rows if not row.accepted], "refused", lambda row: row.reason, console)
    _list([row for row in rows if row.accepted and "unsure" in row.told_by], "unsure of the modality", _told, console)
    damaged = sum(row.damaged for row in rows)
    count = len({row.subject for row in rows if row.accepted})
    subjects = f"{count} subject{'s' * (count != 1)}"
    if held_out and (spread := spread_subject(rows)):
        subject, folders = spread
        console.say(
            f"warning: scans of subject '{subject}' lie in {len(folders)} folders, such as "
            f"{' and '.join(folders[:2])}: if these are of several persons, say whose a scan is with --subject, or "
            "training and test share them"
        )
    maps = accepted.pop(LABEL, 0)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(accepted.items())) or "no volume"
    counts += f" and {maps} label maps" if maps else ""
    refusals = sum(not row.accepted for row in rows)
    state = "prepared" if complete else "stopped, the same command goes on; so far"
    console.say(
        f"{state}: {counts} of {subjects}; {refusals} refused, {damaged} of them because they cannot be read",
        f"every file and its reason: {out / MANIFEST}",
        f"pictures: {out / CONTACT_SHEET}",
    )
    return damaged


def write_contact_sheet(out: Path, rows: Sequence[Row]) -> None:
    """Write one page with three slices of every volume, and every refusal."""
    folder = Path(os.path.commonpath([Path(row.file).parent for row in rows])) if rows else out
    entries = []
    # Label maps after the images, as they are made of them.
    for row in sorted(rows, key=lambda row: (row.modality == LABEL, row.modality != "mri", row.modality, row.file)):
        picture = picture_of(out, out / row.output) if row.output else None
        values = "" if row.minimum is None else f"{row.minimum:.4g} to {row.maximum:.4g}"
        entries.append(
            Entry(
                name=_below(row.file, folder),
                subject=row.subject,
                modality=row.modality or "unknown",
                shape="×".join(map(str, row.shape)),
                spacing=" × ".join(f"{side:.3g}" for side in row.spacing_mm),
                values=values,
                told_by=row.told_by,
                split=row.split,
                picture=picture.relative_to(out).as_posix() if picture and picture.exists() else None,
                reason=None if row.accepted else row.reason,
                note=row.note or (f"of {_below(row.label_for, folder)}" if row.label_for else ""),
            )
        )
    accepted = Counter(row.modality for row in rows if row.accepted)
    summary = {"folder": str(folder)} | {name: str(count) for name, count in sorted(accepted.items())}
    summary["refused"] = str(sum(not row.accepted for row in rows))
    write_text(out / CONTACT_SHEET, contact_sheet(entries, out.name, summary))


def _below(file: str, folder: Path) -> str:
    return str(Path(file).relative_to(folder)) if Path(file).is_relative_to(folder) else file


def _kind_of_rule(rule: str) -> str:
    """Name a rule without the file that it was applied to."""
    return rule.partition(" in the ")[2].partition(" ")[0] or rule


def _told(row: Row) -> str:
    return f"taken for {row.modality} by {row.told_by.removesuffix(', unsure')}: check it, or say with --modality"


def _list(rows: Sequence[Row], title: str, reason: Callable[[Row], str], console: Console) -> None:
    if not rows:
        return
    console.say(f"{title}: {len(rows)}")
    for row in rows[:LISTED]:
        console.say(f"  {row.file}: {reason(row)}")
    if len(rows) > LISTED:
        console.say(f"  … and {len(rows) - LISTED} more")
