"""Which images a label map belongs to."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelwave.data.listing.manifest import LABEL, Row
from voxelwave.data.listing.scans import Scan
from voxelwave.data.reading.volume import Affine
from voxelwave.data.recognition.labels import without_suffix
from voxelwave.data.recognition.rules import session_by_name, subject_by_name
from voxelwave.data.store import StoredVolume
from voxelwave.errors import UnusableVolume
from voxelwave.jobs.prepare.preparation import Preparation
from voxelwave.jobs.prepare.work import LabelJob, stored_stem
from voxelwave.ops.files import free_stem

ALONE = ", with no image of its grid and subject"
SAME_GRID_MM = 0.01  # tools write the same affine to about 1e-4 mm

SERIES = None  # the key of all DICOM series
Images = Mapping[Any, Sequence[tuple[Affine, Row]]]


def pair_labels(
    labels: Mapping[str, Scan], rows: dict[str, Row], kept: set[str], out: Path, how: Preparation
) -> list[LabelJob]:
    """Find the images of each label map, and return what is to be stored.

    An image of a label map has its shape, affine, session and subject. Where no image has that subject, those count
    that lie in the folder of the label map and whose subject begins its name (`p1_T1`, `p1_T1_brain_mask`), and else
    the DICOM series with whose SeriesInstanceUID its name or that of its folder begins, wherever they lie. Of several
    images those remain after which the label map or its folder is named (`T1w__Data/deface_mask`), and of these the
    nearest in the tree of folders. In `rows` the row of a label map is replaced by one for each of its images, which is
    kept where the image's is in `kept`; a label map without an image is refused.
    """
    candidates = _images(rows, out) if labels else {}
    before: dict[str, dict[str, Row]] = {name: {} for name in labels}
    for key, row in list(rows.items()):
        if row.file in before:
            before[row.file][key] = rows.pop(key)
    pairs = []
    for name, scan in sorted(labels.items()):
        first = next(iter(before[name].values()))
        images = _images_of(scan, candidates, how)
        for image in images:
            key = f"{name}>{image.file}"
            if image.file in kept and key in before[name]:
                rows[key] = before[name][key]
            else:
                pairs.append((scan, image, first.told_by))
        if not images:
            rows[name] = first.as_refused(first.told_by + ALONE)
    taken = {stored_stem(row) for row in rows.values() if row.output and row.modality == LABEL}
    return [
        LabelJob(scan, image, free_stem(f"{stored_stem(image)}__{Path(scan.stem).name}", taken), told_by)
        for scan, image, told_by in pairs
    ]


def _images(rows: Mapping[str, Row], out: Path) -> Images:
    """Return the images, with the affine of their file, by shape and subject and by shape and folder."""
    images: dict[Any, list[tuple[Affine, Row]]] = defaultdict(list)
    for row in rows.values():
        if row.accepted and row.modality != LABEL:
            try:
                info = StoredVolume(out / row.output).info
            except UnusableVolume:  # of a scan that is not there any more, so that it is not done again
                continue
            for key in (row.subject, Path(row.file).parent, *([SERIES] if _uid(row) else [])):
                images[info.source_shape, key].append((np.array(info.source_affine), row))
    return images


def _images_of(scan: Scan, candidates: Images, how: Preparation) -> list[Row]:
    try:
        header = scan.read_header()
        shape, grid_affine = header.grid_towards_ras()
    except UnusableVolume:
        return []

    def on_grid(key: str | Path | None) -> list[Row]:
        alike = candidates.get((shape, key), ())
        images = [image for affine, image in alike if np.abs(affine - grid_affine).max() < SAME_GRID_MM]
        return [image for image in images if session in ("", session_by_name(image.file))]

    place, session = Path(scan.name), session_by_name(scan.name)
    subject = subject_by_name(scan.path, scan.root, how.subject)
    images = on_grid(subject)
    images = images or [image for image in on_grid(place.parent) if subject.startswith(f"{image.subject}_")]
    images = images or [image for image in on_grid(SERIES) if _begins(place, _uid(image))]
    images = [image for image in images if _begins(place, _name(image))] or images
    nearest = max((_shared(place, image) for image in images), default=0)
    return [image for image in images if _shared(place, image) == nearest]


def _begins(label: Path, name: str) -> bool:
    """Tell whether the name of a label map or its folder begins with this whole name, or UID."""
    whole_name = re.compile(re.escape(name) + r"(?![^\W_]|\.\d)")
    return any(whole_name.match(own) for own in (label.name, label.parent.name))


def _shared(label: Path, image: Row) -> int:
    """Return how deep the folder lies that a label map and an image have in common."""
    return len(Path(os.path.commonpath((label, image.file))).parts)


def _uid(image: Row) -> str:
    """Return the SeriesInstanceUID of a DICOM series, "" for other images; a checksum may stand behind it."""
    part = Path(image.file).name.partition("#")[2]
    return part if "." in part else ""


def _name(image: Row) -> str:
    return without_suffix(Path(image.file).name.partition("#")[0])
