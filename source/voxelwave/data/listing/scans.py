"""Scans of every format that can be prepared: NIfTI, MGH, NRRD and DICOM series."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxelwave.data.listing.discovery import home_expanded, walk
from voxelwave.data.reading import dicom, nifti, nrrd
from voxelwave.data.reading.dicom_header import Series
from voxelwave.data.reading.unreadable import unread_format
from voxelwave.data.reading.volume import Volume, VolumeInfo
from voxelwave.data.recognition.labels import without_suffix
from voxelwave.data.recognition.recognise import told_beforehand
from voxelwave.data.recognition.rules import Told, subject_by_name
from voxelwave.errors import DamagedVolume, InputError, UnusableVolume
from voxelwave.ops.files import absolute
from voxelwave.ops.loggers import printable
from voxelwave.ops.seeding import key_to_seed

WINDOWED = 255.0  # the highest value of a CT that was windowed before


@dataclass(frozen=True)
class Scan:
    """One volume to be read.

    Attributes:
        path: the file, or the folder of the series.
        root: the folder that was searched.
        frame: which volume of a file of several; None for the only one.
        series: the files of a DICOM series.
    """

    path: Path
    root: Path
    frame: int | None = None
    series: Series | None = None

    @property
    def name(self) -> str:
        """The path, with the number of the volume or of the series where a path holds several."""
        part = f"#{self.frame}" if self.frame is not None else f"#{self.series.uid}" if self.series else ""
        return printable(f"{self.path}{part}")

    @property
    def stem(self) -> str:
        """The place below the folder that was searched, without suffix."""
        place = self.path.relative_to(self.root)
        if self.series is not None:
            return printable((place / series_name(self.series)).as_posix())
        stem = printable(without_suffix(place.as_posix()))
        return stem if self.frame is None else f"{stem}_t{self.frame:03d}"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that hold it."""
        return files_of(self.path, self.series)

    def stamp(self) -> tuple[int, int]:
        """Return size and time of change of its files, the sum and the latest; 0 where they are gone."""
        try:
            stats = [file.stat() for file in self.files]
        except OSError:
            return 0, 0
        return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)

    def subject(self, root: Path, pattern: re.Pattern[str] | None = None) -> str:
        """Tell whose scan it is, by its path below `root` and by DICOM."""
        told = {} if self.series is None else {"patient": self.series.patient, "study": self.series.study_token}
        return subject_by_name(self.path, root, pattern, **told)

    def told(self, given: str | None = None) -> Told:
        """Tell the modality before the values are read, where it is not `given`: by DICOM tag, or by name."""
        tag = None if self.series is None else self.series.modality
        return told_beforehand(self.path, self.root, given=given, tag=tag)

    def read_header(self) -> VolumeInfo:
        """Read shape, affine and type; raises UnusableVolume."""
        if self.series is not None:
            return dicom.read_series_header(self.series)
        if _is_nrrd(self.path):
            return nrrd.read_nrrd_header(self.path)
        return nifti.read_header(self.path)

    def read(self, *, channels: int = 3) -> Volume:
        """Read the values, axes towards RAS; raises UnusableVolume with a short reason."""
        if self.series is not None:
            return dicom.read_series(self.series)
        if _is_nrrd(self.path):
            return nrrd.read_nrrd(self.path, channels=channels, frame=self.frame)
        return nifti.read_volume(self.path, channels=channels, frame=self.frame)


def files_of(path: Path, series: Series | None = None) -> tuple[Path, ...]:
    """Return the files that hold a scan: those of its series, or one, and of a detached header those of its data."""
    if series is not None:
        return series.files
    return (path, *nrrd.data_files(path)) if path.suffix.lower() == ".nhdr" else (path,)


def series_name(series: Series) -> str:
    """Return a name for the files that are made of a series, always the same.

    A description would be easier to read, but it is free text, and may say who the patient is.
    """
    return f"series_{key_to_seed(series.uid):016x}"


def find_scans(
    sources: Sequence[str], *, read_headers: Callable[[Sequence[Path]], dicom.Headers] = dicom.read_headers
) -> tuple[list[Scan], list[tuple[Scan, UnusableVolume]]]:
    """List the scans below each of `sources` (folders or files), sorted, and the files that can be none, with reasons.

    Raises InputError for a source that does not exist or holds nothing that could be a scan.
    """
    scans: dict[str, Scan] = {}
    unusable: dict[str, tuple[Scan, UnusableVolume]] = {}
    for source in sources:
        place = place_of(source)
        if not place.exists():
            raise InputError(f"'{source}' does not exist (working folder: {Path.cwd()}): give a folder or a file")
        root = place if place.is_dir() else place.parent
        closed: list[OSError] = []
        files = walk(place, could_be_a_scan, closed=closed) if place.is_dir() else [place]
        found, problems = scans_among(files, root, read_headers)
        problems += [
            (Scan(Path(error.filename), root), DamagedVolume(f"this folder cannot be opened: {error.strerror}"))
            for error in closed
        ]
        if not found and not problems:
            kinds = ", ".join((*nifti.SUFFIXES, *nrrd.NRRD_SUFFIXES))
            raise InputError(f"'{source}' holds no scan: no file that ends in {kinds}, and no DICOM file")
        for scan, problem in problems:
            unusable.setdefault(_real(scan), (scan, problem))
        for scan in found:
            scans.setdefault(_real(scan), scan)
    return sorted(scans.values(), key=lambda scan: scan.name), list(unusable.values())


def place_of(source: str) -> Path:
    """Return the whole path of a source, so that a folder is told by its name and found again as `.` or `../CT`."""
    return absolute(home_expanded(source))


def scans_among(
    files: Sequence[Path], root: Path, read_headers: Callable[[Sequence[Path]], dicom.Headers] = dicom.read_headers
) -> tuple[list[Scan], list[tuple[Scan, UnusableVolume]]]:
    """Return the scans that `files` hold, and those of them that are to be one and cannot be read, with reasons."""
    found = [Scan(path, root) for path in files if _is_file_of_volumes(path)]
    unusable: list[tuple[Scan, UnusableVolume]] = [
        (Scan(path, root), UnusableVolume(f"a format that is not read ({suffix}): convert it to NIfTI"))
        for path in files
        if (suffix := unread_format(path))
    ]
    if slices := [path for path in files if not _is_file_of_volumes(path) and dicom.is_dicom(path)]:
        series, problems = dicom.find_series(slices, read=read_headers)
        found += [Scan(_common_folder(of.files), root, series=of) for of in series]
        unusable += [(Scan(path, root), DamagedVolume(reason)) for path, reason in problems]
    return found, unusable


def could_be_a_scan(path: Path) -> bool:
    """Tell by the name of a file whether it may hold a scan, of a format that is read or not."""
    if _is_file_of_volumes(path) or unread_format(path):
        return True
    return path.suffix.lower() in ("", ".dcm", ".ima", ".dicom") or path.suffix[1:].isdigit()


def frames_of(scan: Scan, info: VolumeInfo, choice: str, channels: int) -> list[Scan]:
    """Return the volumes of a file of several that are to be read: its "first", "all", or with "refuse" the file.

    Three volumes may as well be the three windows of a CT, which their values tell.

    Raises UnusableVolume where that cannot be read.
    """
    if choice == "refuse" or (several := info.frames(1)) == 1:
        return [scan]
    if info.frames(channels) == 1:
        values = nrrd.read_nrrd(scan.path, frame=0).array if _is_nrrd(scan.path) else nifti.read_plane(scan.path)
        if values.min() >= 0 and values.max() <= WINDOWED:
            return [scan]
    return [replace(scan, frame=frame) for frame in range(1 if choice == "first" else several)]


def _is_file_of_volumes(path: Path) -> bool:
    return path.name.lower().endswith((*nifti.SUFFIXES, *nrrd.NRRD_SUFFIXES))


def _is_nrrd(path: Path) -> bool:
    return path.name.lower().endswith(nrrd.NRRD_SUFFIXES)


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _real(scan: Scan) -> str:
    return f"{os.path.realpath(scan.path)}#{scan.series.uid if scan.series else ''}"
