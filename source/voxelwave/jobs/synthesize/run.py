"""Generated heads as NIfTI files: pretraining for who has no data at hand."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from voxelwave.data.listing.cases import CASES
from voxelwave.data.modalities.ct import CT
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.common.processes import run_all
from voxelwave.ops.files import locked, replacing, write_text
from voxelwave.ops.seeding import numpy_generator
from voxelwave.ops.tables import as_csv
from voxelwave.ops.texts import read_json
from voxelwave.physics.heads3d import LESIONS, MRI_CONTRASTS, Tissue, draw_head, render_ct, render_mri

CT_LAYOUTS = ("hu", "windows", "windows5d")
SMALLEST_SIZE = 32
HEADS_PER_PROCESS = 8


@dataclass(frozen=True)
class Head:
    """One head to write: the place of its image and of its labels, and the key of its generator."""

    image: Path
    labels: Path
    modality: str
    variant: str
    index: int


def synthesize(
    out: Path,
    *,
    num_mri: int,
    num_ct: int,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
    console: Console | None = None,
) -> Outcome:
    """Write `num_mri` MRI and `num_ct` CT heads of `size` voxels of 1 mm to `out`, with label maps and `cases.csv`.

    MRI contrasts and CT layouts (Hounsfield units; three windows in the last axis, `[D, H, W, 3]` and
    `[D, H, W, 1, 3]`) take turns. A head depends on `seed` and its own index only; files that exist are kept.

    Raises:
        InputError: nothing to write, too small a size, or `out` holds heads made with other settings.
    """
    if num_mri < 0 or num_ct < 0 or num_mri + num_ct < 1:
        raise InputError(f"there is no head to write: num_mri is {num_mri}, num_ct is {num_ct}; ask for 1 or more")
    if size < SMALLEST_SIZE:
        raise InputError(f"size is {size}: a head needs at least {SMALLEST_SIZE} voxels along each edge")
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: at least 1 process is needed; leave it out for one a core")
    settings = {"num_mri": num_mri, "num_ct": num_ct, "size": size, "seed": seed}
    record = out / "synthesize.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to write the heads to")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _refuse_other_settings(record, settings)
        # Before the first head, so that a run that was interrupted cannot be continued with other settings.
        write_text(record, json.dumps(settings | {"complete": False}, indent=2) + "\n")

        heads = _plan(out, num_mri=num_mri, num_ct=num_ct)
        for folder in {path.parent for head in heads for path in (head.image, head.labels)}:
            folder.mkdir(parents=True, exist_ok=True)
        missing = [head for head in heads if not (head.image.exists() and head.labels.exists())]
        # Unless told otherwise, a process is started only for as many heads as make up for its start.
        processes = workers or min(os.cpu_count() or 1, len(missing) // HEADS_PER_PROCESS)
        write = partial(_write_head, size=size, seed=seed)
        with stop_on_signal() as signalled:
            written = run_all(
                *(write, missing),
                workers=max(processes, 1),
                should_stop=lambda: signalled.asked,
                name=lambda head: str(head.image),
            )
            count = sum(1 for _ in tracked(written, "generated heads", total=len(missing)))
        if count < len(missing):
            there = len(heads) - len(missing) + count
            (console or Console()).say(
                f"stopped, the same command goes on; so far {there} of {len(heads)} heads; {out}"
            )
            return Outcome(complete=False)
        names = "".join(f"{tissue.value}\t{tissue.name.lower()}\n" for tissue in Tissue)
        write_text(out / "labels" / "labels.tsv", f"value\tname\n{names}")
        write_text(out / CASES, _list_cases(heads, out))
        write_text(record, json.dumps(settings | {"complete": True}, indent=2) + "\n")
        return Outcome()


def _refuse_other_settings(record: Path, settings: dict[str, int]) -> None:
    """Raise InputError where `record` tells of other settings."""
    if not record.exists():
        return
    try:
        made = read_json(record)
        differing = [
            f"{key} {made.get(key)} and not {value}" for key, value in settings.items() if made.get(key) != value
        ]
    except (ValueError, AttributeError):
        raise InputError(f"{record} cannot be read: delete its folder, or give another one") from None
    if differing:
        raise InputError(
            f"{record.parent} holds heads made with {', '.join(differing)}: delete it, or give another folder"
        )


def _plan(out: Path, *, num_mri: int, num_ct: int) -> list[Head]:
    heads = []
    for modality, count, variants in (("mri", num_mri, MRI_CONTRASTS), ("ct", num_ct, CT_LAYOUTS)):
        for index in range(count):
            variant = variants[index % len(variants)]
            stem = f"head_{index:04d}_{variant}"
            image, labels = out / modality / f"{stem}.nii.gz", out / "labels" / f"{stem}_labels.nii.gz"
            heads.append(Head(image, labels, modality, variant, index))
    return heads


def _list_cases(heads: list[Head], out: Path) -> str:
    """Return the heads as a list for downstream tasks, with what their label maps tell."""
    rows = []
    for head in heads:
        present = set(np.unique(np.asarray(nib.load(head.labels).dataobj)).tolist())
        rows.append(
            {
                "image": head.image.relative_to(out),
                "label": head.labels.relative_to(out),
                "subject": f"{head.modality}_{head.index:04d}",
                "modality": head.modality,
                "contrast": MRI_CONTRASTS.index(head.variant) if head.modality == "mri" else None,
                "lesion": int(not present.isdisjoint(LESIONS)),
                "aneurysm": int(Tissue.ANEURYSM in present),
            }
        )
    return as_csv(list(rows[0]), rows)


def _write_head(head: Head, *, size: int, seed: int) -> None:
    generator = numpy_generator(seed, "head", head.modality, head.index)
    labels = draw_head(generator, size=size)
    image: np.ndarray
    if head.modality == "mri":
        image = render_mri(labels, generator, contrast=head.variant)
    else:
        image = render_ct(labels, generator)
        if head.variant != "hu":
            image = np.moveaxis(CT()(image), 0, -1)
        if head.variant == "windows5d":
            image = image[:, :, :, None]
    affine = np.eye(4)
    affine[:3, 3] = -(size - 1) / 2
    for path, array in ((head.labels, labels), (head.image, image)):
        volume = nib.Nifti1Image(array, affine)
        volume.header.set_xyzt_units("mm")
        with replacing(path) as part:
            nib.save(volume, part)
