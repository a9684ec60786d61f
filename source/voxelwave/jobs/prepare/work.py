"""What a process of `voxelwave prepare` does with one scan or one label map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from voxelwave.data.label_maps import as_labels, in_smallest_type, onto_grid
from voxelwave.data.listing.manifest import LABEL, Row
from voxelwave.data.listing.scans import Scan
from voxelwave.data.reading.volume import spacing_of
from voxelwave.data.recognition.recognise import NotAnImage
from voxelwave.data.store import SUFFIX, StoredInfo, StoredVolume, write_stored
from voxelwave.errors import DamagedVolume, UnusableVolume
from voxelwave.jobs.prepare.contact_sheet import save_strip, three_slices
from voxelwave.jobs.prepare.preparation import Preparation, prepare
from voxelwave.ops.files import below
from voxelwave.ops.texts import one_line

PICTURES = Path("pictures")
PICTURED_SIDE = 192
# Of thousands of scans some break what reads them in ways that nobody foresaw; the run goes on without them.
UNFORESEEN = (ValueError, RuntimeError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class ScanJob:
    """A scan, and where it goes below the folder of its modality, without a suffix."""

    scan: Scan
    stem: str


@dataclass(frozen=True)
class LabelJob:
    """A label map and the rule that told it, the row of its image, and where it goes, without a suffix."""

    scan: Scan
    image: Row
    stem: str
    told_by: str


def store_scan(job: ScanJob, *, how: Preparation, out: Path) -> Row:
    """Prepare and store one scan, and return its row; raises OSError where `out` does not take it."""
    scan = job.scan
    readers = how.readers()
    facts: dict[str, Any] = {}
    try:
        prepared = prepare(scan, how, readers, facts)
    except UnusableVolume as unusable:
        return refused(scan, how, unusable, facts)
    except UNFORESEEN as error:
        return refused(scan, how, _unforeseen(error), facts)
    modality = prepared.info.modality
    path = _place(out, modality, job.stem)
    write_stored(path, prepared.volume, prepared.info, prepared.foreground)
    step = _step(prepared.volume)
    shown = readers[modality].scale(prepared.volume[::step, ::step, ::step], prepared.info.bounds)
    _picture(shown, prepared.info.affine, picture_of(out, path), step)
    return described(scan, how, facts, status="accepted", output=path.relative_to(out).as_posix())


def store_label(job: LabelJob, *, how: Preparation, out: Path) -> Row:
    """Put one label map on the grid of its stored image, and return its row."""
    image = StoredVolume(out / job.image.output)
    facts: dict[str, Any] = {"modality": LABEL, "told_by": job.told_by}
    try:
        header = job.scan.read_header()
        labels = as_labels(job.scan.read(channels=1))
        placed = onto_grid(labels.array, labels.affine, shape=image.grid, to_affine=image.affine)
    except UnusableVolume as unusable:
        return refused(job.scan, how, unusable, facts)
    except UNFORESEEN as error:
        return refused(job.scan, how, _unforeseen(error), facts)
    array = in_smallest_type(placed)
    path = _place(out, f"{LABEL}s", job.stem)
    info = StoredInfo(modality=LABEL, affine=image.info.affine)
    write_stored(path, array, info)
    step = _step(array)
    _picture(_greys(array[::step, ::step, ::step]), info.affine, picture_of(out, path), step)
    facts |= {
        "shape": header.shape,
        "spacing_mm": header.spacing_mm,
        "orientation": header.orientation,
        "note": header.note,
        "minimum": float(array.min()),
        "maximum": float(array.max()),
        "label_for": job.image.file,
        "stored_shape": array.shape,
        "stored_spacing_mm": spacing_of(image.affine),
    }
    row = described(job.scan, how, facts, status="accepted", output=path.relative_to(out).as_posix())
    return row.model_copy(update={"subject": job.image.subject})


def _unforeseen(error: Exception) -> DamagedVolume:
    return DamagedVolume(f"cannot be prepared: {type(error).__name__}: {one_line(error)}")


def refused(scan: Scan, how: Preparation, reason: UnusableVolume, facts: dict[str, Any]) -> Row:
    """Return the row of a scan that is refused for `reason`."""
    if isinstance(reason, NotAnImage):
        facts |= {"modality": LABEL, "told_by": str(reason)}
    return described(scan, how, facts, status="refused", reason=str(reason), damaged=isinstance(reason, DamagedVolume))


def described(scan: Scan, how: Preparation, facts: dict[str, Any], **columns: Any) -> Row:
    """Return a row of what is known of `scan`."""
    file_bytes, file_mtime_ns = scan.stamp()
    return Row(
        file=scan.name,
        subject=scan.subject(scan.root, how.subject),
        file_bytes=file_bytes,
        file_mtime_ns=file_mtime_ns,
        **{"note": scan.series.note if scan.series else "", **facts},
        **columns,
    )


def stored_stem(row: Row) -> str:
    """Return the place of what was stored below the folder of its modality, without suffix."""
    return Path(*Path(row.output).parts[1:]).as_posix().removesuffix(SUFFIX)


def picture_of(out: Path, stored: Path) -> Path:
    """Return where the picture of a stored volume is; raises InputError where links lead out of the data set."""
    return below(out, (PICTURES / stored.relative_to(out)).with_suffix(".jpg").as_posix())


def _place(out: Path, folder: str, stem: str) -> Path:
    """Return where a volume is stored, in a folder that is there; raises InputError where links lead out of `out`."""
    path = below(out, f"{folder}/{stem}{SUFFIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _picture(shown: Float32[ndarray, "channel depth height width"], affine: Any, path: Path, step: int) -> None:
    """Save three slices of every `step`-th voxel of a volume."""
    first, second, third = (step * side for side in spacing_of(np.array(affine)))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_strip(path, three_slices(shown, (first, second, third)))


def _step(array: ndarray) -> int:
    return int(max(1, max(array.shape[:3]) // PICTURED_SIDE))


def _greys(labels: ndarray) -> Float32[ndarray, "1 depth height width"]:
    """Return labels as evenly spaced greys, so that a label of 2035 does not leave all others black."""
    values, ranks = np.unique(labels, return_inverse=True)
    return (ranks.reshape(labels.shape)[None] / max(1, len(values) - 1)).astype(np.float32)
