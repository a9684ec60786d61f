"""Any folder of scans into a data set that training does not wait for: a store, a manifest, a contact sheet."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from voxelwave.data.listing.manifest import LABEL, MANIFEST, Row, as_csv, read_manifest, split_of, write_manifest
from voxelwave.data.listing.scans import Scan, find_scans, frames_of, place_of
from voxelwave.data.reading.dicom import series_uid
from voxelwave.data.reading.nifti import SUFFIXES
from voxelwave.data.reading.nrrd import NRRD_SUFFIXES
from voxelwave.data.store import StoredVolume, is_store_file
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.common.processes import checked_workers, run_all
from voxelwave.jobs.prepare.contact_sheet import is_picture
from voxelwave.jobs.prepare.headers import read_headers
from voxelwave.jobs.prepare.labels import pair_labels
from voxelwave.jobs.prepare.preparation import Preparation, channels_of
from voxelwave.jobs.prepare.report import print_summary, write_contact_sheet
from voxelwave.jobs.prepare.settings import check, check_data_set, record_settings
from voxelwave.jobs.prepare.work import (
    LabelJob,
    ScanJob,
    picture_of,
    refused,
    store_label,
    store_scan,
    stored_stem,
)
from voxelwave.ops.files import below, free_stem, locked
from voxelwave.ops.loggers import printable

DUPLICATE = "the same content as "
FRAME = re.compile(rf"({'|'.join(map(re.escape, (*SUFFIXES, *NRRD_SUFFIXES)))})#\d+$", re.IGNORECASE)


class Preparer:
    """One call of `voxelwave prepare`.

    Args:
        out: the data set.
        how: settings that every volume of a data set shares.
        workers: processes; None is one a core.
        strict: end at the first file that cannot be read.
        holdout: share of the subjects whose volumes are marked "test"; None is that of the call before.
        labels: store label maps beside their images.
    """

    def __init__(
        self,
        out: Path,
        how: Preparation,
        *,
        workers: int | None = None,
        strict: bool = False,
        holdout: float | None = None,
        labels: bool = True,
        console: Console | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.out, self.how, self.strict, self.holdout, self.labels = out, how, strict, holdout, labels
        self.workers = checked_workers(workers)
        self.console, self._should_stop = console or Console(), should_stop
        self.readers = check(how, holdout=holdout)
        self._rows: dict[str, Row] = {}
        self._labels: dict[str, Scan] = {}
        self._outputs: set[str] = set()
        self._holdout = 0.0

    def __call__(self, sources: Sequence[str]) -> Outcome:
        """Prepare the scans below `sources`; what is there already is kept, so that a call is repeated to go on.

        Raises:
            InputError: for another preparation in `out`, no usable scan, or, with `strict`, a file that cannot be read.
        """
        check_data_set(self.out, self.how)
        found = find_scans(sources, read_headers=partial(read_headers, workers=self.workers))
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out), stop_on_signal() as signalled:
            self._holdout = record_settings(self.out, self.how, self.holdout)

            def asked() -> bool:
                return signalled.asked or self._should_stop()

            try:
                # 1. What is there, and what of it is done already.
                scans, kept = self._plan(*found, [printable(str(place_of(source))) for source in sources])
                # 2. Every scan by itself. A row is in the manifest as soon as its volume is in the store.
                named = zip(scans, self._stems(scans), strict=True)
                jobs = [ScanJob(scan, stem) for scan, stem in named if scan.name not in kept]
                self._run(partial(store_scan, how=self.how, out=self.out), jobs, "volumes", asked)
                # 3. What can be told of all of them together.
                if not asked():
                    self._refuse_duplicates()
                    wanted = self._labels if self.labels else {}
                    pairs = pair_labels(wanted, self._rows, kept, self.out, self.how)
                    self._run(partial(store_label, how=self.how, out=self.out), pairs, "label maps", asked)
                complete = not asked()
                rows = self._write()
            except OSError as error:
                raise InputError(
                    f"cannot write {error.filename or self.out}: {error.strerror or error}; what is done is kept: "
                    "make room, and the same command goes on"
                ) from None
        damaged = print_summary(rows, self.out, complete=complete, console=self.console, held_out=self._holdout > 0)
        if complete and not any(row.accepted and row.modality != LABEL for row in rows):
            raise InputError(f"none of {len(rows)} files can be used; the first, {rows[0].file}: {rows[0].reason}")
        return Outcome(complete, damaged)

    def _plan(
        self, found: Sequence[Scan], unusable: Sequence[tuple[Scan, UnusableVolume]], places: Sequence[str]
    ) -> tuple[list[Scan], set[str]]:
        """Return the volumes of all files below `places`, and the names of those that are done already."""
        manifest = self.out / MANIFEST
        known = read_manifest(manifest) if manifest.exists() else []
        if foreign := next((row.file for row in known if not Path(row.file).is_absolute()), None):
            raise InputError(f"{manifest} lists '{foreign}', which is no whole path: prepare into another folder")
        self._outputs = {row.output for row in known if row.output}
        self._gone = _gone_files(known, found, unusable, places)
        known = _without_past(known, found, unusable, self._gone)
        self._rows = {_key(row): row for row in known}
        for scan, reason in unusable:
            self._take(refused(scan, self.how, reason, {}))
        by_file: dict[str, list[Row]] = defaultdict(list)
        for row in known:
            by_file[_whole(row.file)].append(row)
        scans, kept = [], set()
        for scan in found:
            before = by_file.get(_whole(scan.name), [])
            names = {row.file for row in before}
            done = bool(before) and all(self._still_holds(row, scan) for row in before)
            parts = [scan] if done and names == {scan.name} else self._parted(scan)
            if done and names == {part.name for part in parts}:
                kept |= names
                labels = {row.file for row in before if row.modality == LABEL}
                self._labels |= {part.name: part for part in parts if part.name in labels}
            else:
                for row in before:
                    self._rows.pop(_key(row), None)
            scans += parts
        return scans, kept

    def _still_holds(self, row: Row, scan: Scan) -> bool:
        # What could not be read may have been a matter of the moment, of a network or of memory.
        if row.damaged or (row.file_bytes, row.file_mtime_ns) != scan.stamp():
            return False
        if row.modality != LABEL and self.how.modality not in (None, row.modality):
            return False
        if row.reason.startswith(DUPLICATE):
            original = self._rows.get(row.reason.removeprefix(DUPLICATE))
            return original is not None and original.accepted and original.hash == row.hash
        return not row.output or _opens(self.out / row.output)

    def _parted(self, scan: Scan) -> list[Scan]:
        """Return the volumes of a file of several; what is wrong with a file is found when it is read."""
        try:
            channels = channels_of(scan.told(self.how.modality), self.readers)
            return frames_of(scan, scan.read_header(), self.how.frames, channels)
        except UnusableVolume:
            return [scan]

    def _stems(self, scans: Sequence[Scan]) -> list[str]:
        """Return where each scan is stored, without suffix: at its place below the folder that was searched.

        Refused scans have a place, too, so that all places are the same whichever scans were done before.
        """
        stored = {row.file: stored_stem(row) for row in self._rows.values() if row.output and row.modality != LABEL}
        taken = set(stored.values())
        return [stored.get(scan.name) or free_stem(scan.stem, taken) for scan in scans]

    def _run(
        self,
        work: Callable[[Any], Row],
        jobs: Sequence[ScanJob | LabelJob],
        what: str,
        should_stop: Callable[[], bool],
    ) -> None:
        """Do the jobs; every row is on disk before the next is waited for."""
        if not jobs:
            return
        scans = {job.scan.name: job.scan for job in jobs}
        self._save(self._rows.values())
        rows = run_all(work, jobs, workers=self.workers, should_stop=should_stop, name=lambda job: job.scan.name)
        with (self.out / MANIFEST).open("a", encoding="utf-8") as journal:
            for row in tracked(rows, what, total=len(jobs)):
                self._outputs |= {row.output} - {""}
                if row.modality == LABEL:
                    self._labels[row.file] = scans[row.file]
                journal.write(as_csv([row], header=False))
                journal.flush()
                self._take(row)

    def _take(self, row: Row) -> None:
        self._rows[_key(row)] = row
        if self.strict and row.damaged:
            raise InputError(f"{row.file}: {row.reason} (--strict; what is done before it is kept)")

    def _refuse_duplicates(self) -> None:
        """Of volumes of the same content, keep the first in the order of names; one whose file is gone was renamed."""
        first: dict[str, Row] = {}
        for key, row in sorted(self._rows.items(), key=lambda item: (item[1].file in self._gone, item[0])):
            if row.modality == LABEL or not (row.accepted or row.reason.startswith(DUPLICATE)):
                continue
            original = first.setdefault(row.hash, row)
            if original is not row and row.file in self._gone:
                # With its label maps, unless they are there: then they find the image by its new name.
                past = {key for key, of in self._rows.items() if of.label_for == row.file and of.file in self._gone}
                self._rows = {name: of for name, of in self._rows.items() if name not in {key, *past}}
            elif original is not row:
                self._rows[key] = row.as_refused(DUPLICATE + original.file)

    def _write(self) -> list[Row]:
        """Write manifest and contact sheet, in the order of names."""
        rows = [
            row.model_copy(update={"split": split_of(row.subject, holdout=self._holdout) if row.accepted else ""})
            for _, row in sorted(self._rows.items())
        ]
        self._save(rows)
        write_contact_sheet(self.out, rows)
        return rows

    def _save(self, rows: Collection[Row]) -> None:
        """Write the manifest; first delete what was stored for scans that have changed or turned out to be copies."""
        # In this order, since what no row names is never found again.
        for output in self._outputs - {row.output for row in rows}:
            stored = below(self.out, output)
            picture = picture_of(self.out, stored)
            for path, is_own in ((stored, is_store_file), (picture, is_picture)):
                if path.is_file():
                    if is_own(path):
                        path.unlink()
                    else:  # written by something else, whatever the manifest says
                        self.console.say(f"left where it is, since it was not written here: {path}")
        write_manifest(self.out / MANIFEST, rows)


def _gone_files(
    known: Sequence[Row],
    found: Sequence[Scan],
    unusable: Sequence[tuple[Scan, UnusableVolume]],
    places: Sequence[str],
) -> set[str]:
    """Return the files of rows, below the `places` that were searched, that are not there any more."""
    there = {_whole(scan.name) for scan in found} | {scan.name for scan, _ in unusable}
    inside = tuple(f"{place.rstrip('/')}{sign}" for place in places for sign in "/#")
    files = {row.file for row in known}
    return {file for file in files if _whole(file) not in there and (file in places or file.startswith(inside))}


def _without_past(
    known: Sequence[Row], found: Sequence[Scan], unusable: Sequence[tuple[Scan, UnusableVolume]], gone: Collection[str]
) -> list[Row]:
    """Leave out rows of files that are `gone`: refused ones, label maps whose image is still there, parts of a series.

    With more of its files, a DICOM series may lie in another common folder, or be one of several of its UID. What was
    stored of any other file that is gone is kept.
    """
    images = {_whole(scan.name) for scan in found}
    uids = {series_uid(scan.series.uid) for scan in found if scan.series}
    if any(scan.path.is_dir() for scan, _ in unusable):  # that cannot be opened now
        uids = set()

    def past(row: Row) -> bool:
        if row.file not in gone:
            return False
        if row.modality == LABEL and _whole(row.label_for) in images:
            return True
        return not row.accepted or series_uid(row.file.rpartition("#")[2]) in uids

    return [row for row in known if not past(row)]


def _whole(name: str) -> str:
    """Return the name of the file that holds a volume of several."""
    return FRAME.sub(r"\1", name)


def _opens(stored: Path) -> bool:
    try:
        StoredVolume(stored)
    except UnusableVolume:
        return False
    return True


def _key(row: Row) -> str:
    """Return what tells a row from all others: a label map has a row for each of its images."""
    return f"{row.file}>{row.label_for}" if row.label_for else row.file
