"""Generated heads as NIfTI files: pretraining for who has no data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from voxelwave.data.label_maps import read_labels
from voxelwave.data.listing.cases import CASES
from voxelwave.data.modalities.ct import CT
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.made_folder import filling
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.common.processes import checked_workers, run_all
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.seeding import numpy_generator
from voxelwave.ops.tables import as_csv
from voxelwave.physics.heads3d import HEAD_MM, LESIONS, MRI_CONTRASTS, Labels, Tissue, draw_head, render_ct, render_mri

CT_LAYOUTS = ("hu", "windows", "windows5d")
CONTRASTS = (*MRI_CONTRASTS, "CT")  # of a head that is shown several times
SHARED = "shared"  # by several images
SMALLEST_SIZE, LARGEST_SIZE = 32, 1024
HEADS_PER_PROCESS = 8


@dataclass(frozen=True)
class Head:
    """One head to write: the place of each of its images and of its labels, and the key of its generator.

    Attributes:
        images: by contrast or layout, all of the one label map.
        drawn_as: one for MRI, for CT and for heads that are shown several times, so that no two are the same head.
    """

    images: dict[str, Path]
    labels: Path
    drawn_as: str
    index: int

    @property
    def subject(self) -> str:
        """Whose head it is."""
        return f"{self.drawn_as}_{self.index:04d}"

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is written of it."""
        return (*self.images.values(), self.labels)


def synthesize(
    out: Path,
    *,
    num_mri: int,
    num_ct: int,
    num_heads: int = 0,
    contrasts: Sequence[str] = CONTRASTS,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
    console: Console | None = None,
) -> Outcome:
    """Write `num_mri` MRI and `num_ct` CT heads, 192 mm wide in `size` voxels, to `out`, with label maps and a list.

    MRI contrasts and CT layouts (Hounsfield units; three windows in the last axis, `[D, H, W, 3]` and
    `[D, H, W, 1, 3]`) take turns. `num_heads` more heads are each shown in all of `contrasts`, on one grid with one
    label map. A head depends on `seed` and its own index only, an image also on its contrast; files that exist are
    kept.

    Raises:
        InputError: nothing to write, an unknown contrast, too small a size, or `out` holds heads made with other
            settings.
    """
    if min(num_mri, num_ct, num_heads) < 0 or num_mri + num_ct + num_heads < 1:
        raise InputError(
            f"there is no head to write: num_mri is {num_mri}, num_ct is {num_ct}, num_heads is {num_heads}; ask for "
            f"1 or more"
        )
    if not contrasts or len(set(contrasts)) < len(contrasts) or not set(contrasts) <= set(CONTRASTS):
        raise InputError(f"contrasts are some of {', '.join(CONTRASTS)}, each once, got '{','.join(contrasts)}'")
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise InputError(f"size is {size}: a head has {SMALLEST_SIZE} to {LARGEST_SIZE} voxels along each edge")
    most_processes = checked_workers(workers)
    settings: dict[str, Any] = {"num_mri": num_mri, "num_ct": num_ct, "size": size, "seed": seed}
    if num_heads:
        settings |= {"num_heads": num_heads, "contrasts": list(contrasts)}
    heads = [*_plan(out, num_mri=num_mri, num_ct=num_ct), *_shared(out, num_heads, contrasts)]
    planned = [path for head in heads for path in head.files]
    with filling(out, settings, things="heads", planned=planned) as complete:
        for folder in {path.parent for path in planned}:
            folder.mkdir(parents=True, exist_ok=True)
        missing = [head for head in heads if not all(path.exists() and path.stat().st_size for path in head.files)]
        # Unless told otherwise, a process is started only for as many heads as make up for its start.
        processes = workers or min(most_processes, len(missing) // HEADS_PER_PROCESS)
        write = partial(_write_head, size=size, seed=seed)
        with stop_on_signal() as signalled:
            written = run_all(
                *(write, missing),
                workers=max(processes, 1),
                should_stop=lambda: signalled.asked,
                name=lambda head: str(head.labels),
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
        complete()
        return Outcome()


def _plan(out: Path, *, num_mri: int, num_ct: int) -> list[Head]:
    heads = []
    for modality, count, variants in (("mri", num_mri, MRI_CONTRASTS), ("ct", num_ct, CT_LAYOUTS)):
        for index in range(count):
            variant = variants[index % len(variants)]
            stem = f"head_{index:04d}_{variant}"
            image, labels = out / modality / f"{stem}.nii.gz", out / "labels" / f"{stem}_labels.nii.gz"
            heads.append(Head({variant: image}, labels, modality, index))
    return heads


def _shared(out: Path, count: int, contrasts: Sequence[str]) -> list[Head]:
    heads = []
    for index in range(count):
        stem = f"{SHARED}_{index:04d}"
        images = {name: out / _modality(name) / f"{stem}_{name}.nii.gz" for name in contrasts}
        heads.append(Head(images, out / "labels" / f"{stem}_labels.nii.gz", SHARED, index))
    return heads


def _modality(variant: str) -> str:
    return "mri" if variant in MRI_CONTRASTS else "ct"


def _list_cases(heads: list[Head], out: Path) -> str:
    """Return the heads as a list for downstream tasks, with what their label maps tell."""
    rows = []
    for head in heads:
        try:
            present = set(np.unique(read_labels(head.labels).array).tolist())
        except UnusableVolume as error:
            raise InputError(
                f"{head.labels} is kept, and cannot be read ({error}): delete it, and the same command writes it again"
            ) from None
        rows += [
            {
                "image": image.relative_to(out),
                "label": head.labels.relative_to(out),
                "subject": head.subject,
                "modality": _modality(variant),
                "contrast": MRI_CONTRASTS.index(variant) if variant in MRI_CONTRASTS else None,
                "lesion": int(not present.isdisjoint(LESIONS)),
                "aneurysm": int(Tissue.ANEURYSM in present),
            }
            for variant, image in head.images.items()
        ]
    return as_csv(list(rows[0]), rows)


def _write_head(head: Head, *, size: int, seed: int) -> None:
    generator = numpy_generator(seed, "head", head.drawn_as, head.index)
    labels = draw_head(generator, size=size)
    arrays = {head.labels: labels}
    for variant, image in head.images.items():
        if head.drawn_as == SHARED:  # whatever the other contrasts are
            generator = numpy_generator(seed, "head", head.drawn_as, head.index, variant)
        arrays[image] = _rendered(labels, generator, variant)
    voxel_mm = HEAD_MM / size
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = -voxel_mm * (size - 1) / 2
    for path, array in arrays.items():
        volume = nib.Nifti1Image(array, affine)
        volume.header.set_xyzt_units("mm")
        with replacing(path) as part:
            nib.save(volume, part)


def _rendered(labels: Labels, generator: np.random.Generator, variant: str) -> np.ndarray:
    if variant in MRI_CONTRASTS:
        return render_mri(labels, generator, contrast=variant)
    image: np.ndarray = render_ct(labels, generator)
    if variant in ("windows", "windows5d"):
        image = np.moveaxis(CT()(image), 0, -1)
    return image[:, :, :, None] if variant == "windows5d" else image
