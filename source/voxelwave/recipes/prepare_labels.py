"""Which images a label map belongs to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelwave.data.manifest import LABEL, Row
from voxelwave.data.modalities import UnusableVolume
from voxelwave.data.preparation import Preparation
from voxelwave.data.rules import subject_by_name
from voxelwave.data.scans import Scan
from voxelwave.data.store import StoredVolume
from voxelwave.data.volume import towards_ras
from voxelwave.recipes.prepare_work import LabelJob, stem_of

ALONE = ", with no image of its grid"


def pair_labels(
    labels: Mapping[str, Scan], rows: dict[str, Row], kept: set[str], out: Path, how: Preparation
) -> list[LabelJob]:
    """Find the images of each label map, and return what is to be stored.

    Images have the shape and the affine of the label map, and its subject; of several those count whose name the label
    map, or its folder, begins with (`T1w__Data/deface_mask`), else those of its folder. Where no image has its subject,
    names in its folder have to begin with the same word. In `rows` a label map with images is replaced by a row for
    each, kept where the image's was; one without is refused.
    """
    on_grid = _by_grid(rows, out) if labels else {}
    jobs = []
    for name, scan in sorted(labels.items()):
        of_label = {key: row for key, row in rows.items() if row.file == name}
        for key in of_label:
            del rows[key]
        images = _images_of(scan, on_grid, how)
        for image in images:
            key = f"{name}>{image.file}"
            if image.file in kept and key in of_label:
                rows[key] = of_label[key]
            else:
                stem = Path(*Path(image.output).parts[1:]).with_suffix("")
                jobs.append(LabelJob(scan, image, f"{stem}__{Path(stem_of(scan)).name}"))
        if not images:
            row = next(iter(of_label.values()))
            reason = row.reason.removesuffix(ALONE) or "a label map"
            columns = {"status": "refused", "reason": reason + ALONE, "output": "", "label_for": ""}
            rows[name] = row.model_copy(update=columns)
    return jobs


def _by_grid(rows: Mapping[str, Row], out: Path) -> dict[Any, list[Row]]:
    on_grid: dict[Any, list[Row]] = defaultdict(list)
    for row in rows.values():
        if row.accepted and row.modality != LABEL:
            info = StoredVolume(out / row.output).info
            on_grid[_grid_key(info.source_shape, info.source_affine)].append(row)
    return on_grid


def _images_of(scan: Scan, on_grid: Mapping[Any, list[Row]], how: Preparation) -> list[Row]:
    try:
        header = scan.read_header()
        empty = towards_ras(np.empty(header.shape[:3], dtype=np.uint8), header.affine)
    except UnusableVolume:
        return []
    images = on_grid.get(_grid_key(empty.array.shape, empty.affine.tolist()), [])
    subject = subject_by_name(scan.path, scan.root, how.subject)
    place = scan.path.absolute()
    beside = [image for image in images if Path(image.file).parent == place.parent]
    if same := [image for image in images if image.subject == subject]:
        named = [image for image in same if _named_after(place, Path(image.output).stem)]
        return named or [image for image in same if image in beside] or same
    return [image for image in beside if _first_word(Path(image.file).name) == _first_word(place.name)]


def _named_after(label: Path, image: str) -> bool:
    return any(part.startswith(image) for part in (label.name, label.parent.name))


def _first_word(name: str) -> str:
    return re.split(r"[_+.\s]", name)[0]


def _grid_key(shape: Sequence[int], affine: Sequence[Sequence[float]]) -> tuple[Any, ...]:
    # Tools write the same affine to about 1e-4 mm; adding 0 makes one zero of two.
    return tuple(shape), tuple((np.round(np.asarray(affine)[:3], 2) + 0.0).reshape(-1).tolist())
