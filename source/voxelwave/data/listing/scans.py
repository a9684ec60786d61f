"""Scans of every format that can be prepared: NIfTI, MGH, NRRD and DICOM series."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from voxelwave.data.listing.discovery import home_expanded, walk
from voxelwave.data.reading import dicom, nifti, nrrd
from voxelwave.data.reading.dicom_header import Series
from voxelwave.data.reading.volume import Volume, VolumeInfo
from voxelwave.data.recognition.recognise import told_beforehand
from voxelwave.data.recognition.rules import Told
from voxelwave.errors import DamagedVolume, InputError, UnusableVolume
from voxelwave.ops.loggers import printable

# Listed, so that no scan is passed over without a word.
NOT_READ = (".img", ".mha", ".mhd", ".mnc", ".nii.bz2", ".nii.xz", ".nii.zip", ".dcm.gz", ".par")


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

    def stamp(self) -> tuple[int, int]:
        """Return size and time of change of the file (of a series the sum and the latest); 0 where it is gone."""
        files = self.series.files if self.series else (self.path,)
        try:
            stats = [file.stat() for file in files]
        except OSError:
            return 0, 0
        return sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)

    def told(self, given: str | None = None) -> Told:
        """Tell the modality before the values are read, where it is not `given`: by DICOM tag, or by name."""
        tag = None if self.series is None else self.series.modality
        return told_beforehand(self.path, self.root, given=given, tag=tag)

    def read_header(self) -> VolumeInfo:
        """Read shape, affine and type; raises UnusableVolume."""
        if self.series is not None:
            return dicom.read_series_header(self.series)
        if self.path.name.lower().endswith(nrrd.NRRD_SUFFIXES):
            return nrrd.read_nrrd_header(self.path)
        return nifti.read_header(self.path)

    def read(self, *, channels: int = 3) -> Volume:
        """Read the values, axes towards RAS; raises UnusableVolume with a short reason."""
        if self.series is not None:
            return dicom.read_series(self.series)
        if self.path.name.lower().endswith(nrrd.NRRD_SUFFIXES):
            return nrrd.read_nrrd(self.path, channels=channels, frame=self.frame)
        return nifti.read_volume(self.path, channels=channels, frame=self.frame)


def find_scans(sources: Sequence[str]) -> tuple[list[Scan], list[tuple[Scan, UnusableVolume]]]:
    """List the scans below each of `sources` (folders or files), sorted, and the files that can be none, with reasons.

    Raises InputError for a source that does not exist or holds nothing that could be a scan.
    """
    scans: dict[str, Scan] = {}
    unusable: dict[str, tuple[Scan, UnusableVolume]] = {}
    for source in sources:
        # Written out, so that a folder is told by its name and found again however it is named: `.`, `../CT`.
        place = Path(os.path.normpath(home_expanded(source).absolute()))
        if not place.exists():
            raise InputError(f"'{source}' does not exist (working folder: {Path.cwd()}): give a folder or a file")
        root = place if place.is_dir() else place.parent
        candidates = walk(place, _could_be_a_scan) if place.is_dir() else [place]
        slices = [path for path in candidates if not _is_file_of_volumes(path) and dicom.is_dicom(path)]
        found = [Scan(path, root) for path in candidates if _is_file_of_volumes(path)]
        for path in candidates:
            if path.name.lower().endswith(NOT_READ):
                scan = Scan(path, root)
                unread = UnusableVolume(f"a format that is not read ({path.suffix}): convert it to NIfTI")
                unusable.setdefault(_real(scan), (scan, unread))
        if slices:
            series, problems = dicom.find_series(slices)
            found += [Scan(_common_folder(of.files), root, series=of) for of in series]
            for path, reason in problems:
                scan = Scan(path, root)
                unusable.setdefault(_real(scan), (scan, DamagedVolume(reason)))
        if not found and not unusable:
            kinds = ", ".join((*nifti.SUFFIXES, *nrrd.NRRD_SUFFIXES))
            raise InputError(f"'{source}' holds no scan: no file that ends in {kinds}, and no DICOM file")
        for scan in found:
            scans.setdefault(_real(scan), scan)
    return sorted(scans.values(), key=lambda scan: scan.name), list(unusable.values())


def frames_of(scan: Scan, info: VolumeInfo, choice: str, channels: int) -> list[Scan]:
    """Return the volumes of a file of several that are to be read: its "first", "all", or with "refuse" the file."""
    frames = info.frames(channels)
    if frames == 1 or choice == "refuse":
        return [scan]
    return [replace(scan, frame=frame) for frame in range(1 if choice == "first" else frames)]


def _is_file_of_volumes(path: Path) -> bool:
    return path.name.lower().endswith((*nifti.SUFFIXES, *nrrd.NRRD_SUFFIXES))


def _could_be_a_scan(path: Path) -> bool:
    if path.name.lower().endswith(NOT_READ):
        return True
    return (
        _is_file_of_volumes(path) or path.suffix.lower() in ("", ".dcm", ".ima", ".dicom") or path.suffix[1:].isdigit()
    )


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _real(scan: Scan) -> str:
    return f"{os.path.realpath(scan.path)}#{scan.series.uid if scan.series else ''}"
