"""The heads of the transfer study, each shown in several contrasts, and real scans of one head where they are at hand.

A set has heads that no other set has. What is tested on is a crop of its own for each contrast of a head, so that two
contrasts of a head share no grid.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.scaled import read_scaled
from voxelwave.jobs.probe.features import prevailing
from voxelwave.ops.patches import patchify
from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import MRI_CONTRASTS, Tissue, draw_head, render_ct, render_mri
from voxelwave.physics.smooth_noise import smooth_noise
from voxelwave.registry import MODALITIES

sys.path.insert(0, str(Path(__file__).parents[1]))  # for all modules of the study: they import this one first

SIDE, SPACING_MM = 64, 3.0
CROP, PATCH = 32, 4
CONTRASTS = (*MRI_CONTRASTS, "CT")
PRETRAIN, NOISE = "pretrain", "noise"
# What probes are fitted on and tested on; and the same of other heads, on which everything was chosen.
FIT, TEST = "fit", "test"
CHOICE_FIT, CHOICE_TEST = "choice fit", "choice test"
# Heads in which lesions and aneurysms are looked for: not every head has one.
SEARCH_FIT, SEARCH_TEST = "search fit", "search test"
HEADS = {PRETRAIN: 96, FIT: 24, TEST: 64, CHOICE_FIT: 24, CHOICE_TEST: 24, SEARCH_FIT: 64, SEARCH_TEST: 192}
CROPS = {FIT: 2, TEST: 1, CHOICE_FIT: 2, CHOICE_TEST: 1}
NOISE_CELLS = {4: 1.0, 8: 0.7, 20: 0.4}  # along each edge, and how strong
CLASSES = {
    Tissue.GREY_MATTER: 1,
    Tissue.WHITE_MATTER: 2,
    Tissue.DEEP_GREY: 3,
    Tissue.VENTRICLE: 4,
    Tissue.CEREBELLUM: 5,
    Tissue.BRAIN_STEM: 6,
}
REAL_PAIRS = {
    "stroke T1→T2": ("stroke_T1", "stroke_T2"),
    "stroke T1→FLAIR": ("stroke_T1", "stroke_FLAIR"),
    "stroke T2→FLAIR": ("stroke_T2", "stroke_FLAIR"),
    "MNI152 T1→T2": ("mni152_T1_2mm", "mni152_T2_2mm"),
}


def modality_of(contrast: str) -> str:
    """Return "ct" or "mri"."""
    return "ct" if contrast == "CT" else "mri"


def image_of(folder: Path, of: str, contrast: str, number: int) -> Path:
    """Return the file of a head in a contrast; what is pretrained on lies in a folder for each modality."""
    return folder / of / modality_of(contrast) / f"head{number:03d}_{contrast}.nii"


def labels_of(folder: Path, of: str, number: int) -> Path:
    """Return the file of a head's tissues."""
    return folder / of / "labels" / f"head{number:03d}_labels.nii"


def write_heads(folder: Path, pool: ProcessPoolExecutor) -> None:
    """Write every head and every volume of noise that is missing, and lists of cases."""
    jobs = [pool.submit(_write_head, folder, of, number) for of, count in HEADS.items() for number in range(count)]
    jobs += [pool.submit(_write_noise, folder, number) for number in range(HEADS[PRETRAIN])]
    for job in jobs:
        job.result()
    for of, count in HEADS.items():
        rows = [f"{image_of(folder, of, CONTRASTS[0], n)},{labels_of(folder, of, n)},mri" for n in range(count)]
        (folder / of / "cases.csv").write_text("\n".join(["image,label,modality", *rows]) + "\n")


def _write_head(folder: Path, of: str, number: int) -> None:
    files = {contrast: image_of(folder, of, contrast, number) for contrast in CONTRASTS}
    place = labels_of(folder, of, number)
    if place.exists():
        return
    head = draw_head(numpy_generator("transfer", of, number), size=SIDE)
    for contrast, path in files.items():
        generator = numpy_generator("transfer", of, number, contrast)
        shown = render_ct(head, generator) if contrast == "CT" else render_mri(head, generator, contrast=contrast)
        _save(shown, path)
    _save(head, place)


def _write_noise(folder: Path, number: int) -> None:
    """Write smooth noise of several scales in the place of a head."""
    path = folder / NOISE / "mri" / f"noise{number:03d}.nii"
    if not path.exists():
        generator = numpy_generator("transfer", NOISE, number)
        noise = sum(strength * smooth_noise(generator, SIDE, cells) for cells, strength in NOISE_CELLS.items())
        _save(np.asarray(noise - np.min(noise), np.float32), path)


def _save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part_{path.name}")
    nibabel.save(nibabel.Nifti1Image(array, np.diag((SPACING_MM,) * 3 + (1.0,))), part)
    part.rename(path)


@dataclass(frozen=True)
class Crops:
    """Crops of heads in one contrast, with the tokens of brain.

    Attributes:
        volumes: `[crop, channel, 32, 32, 32]` in [0, 1].
        chosen: `[crop, 8, 8, 8]`, the tokens of brain.
        labels, heads: of each such token, in raster order: its tissue, and the number of the head.
        raw: the voxels of each such token, `[token, channel, 64]`.
        in_crop, in_scan: its place, from 0 to 1 along each side of the crop or of the whole scan.
    """

    volumes: Tensor
    chosen: Tensor
    labels: np.ndarray
    heads: np.ndarray
    raw: np.ndarray
    in_crop: np.ndarray
    in_scan: np.ndarray


def read_crops(folder: Path, of: str, contrast: str) -> Crops:
    """Cut crops of each head of a set, around a voxel of its brain drawn for each contrast."""
    modality = MODALITIES.build(modality_of(contrast))
    volumes, chosen = [], []
    rows: list[tuple[np.ndarray, ...]] = []
    for number in range(HEADS[of]):
        scaled = read_scaled(image_of(folder, of, contrast, number), modality).volume
        tissues = np.asarray(nibabel.load(labels_of(folder, of, number)).dataobj)
        classes = np.zeros(len(Tissue), np.uint8)
        classes[list(CLASSES)] = list(CLASSES.values())
        tissues = classes[tissues]
        brain = np.argwhere(tissues)
        generator = numpy_generator("transfer crops", of, contrast, number)
        for _ in range(CROPS[of]):
            corner = (brain[generator.integers(len(brain))] - CROP // 2).clip(0, SIDE - CROP)
            part = tuple(slice(start, start + CROP) for start in corner)
            volume = scaled[(slice(None), *part)].contiguous()
            tokens = prevailing(tissues[part], PATCH, None)
            asked = tokens > 0
            inside = (asked.nonzero().numpy() + 0.5) * PATCH
            volumes.append(volume)
            chosen.append(asked)
            rows.append(
                (
                    tokens[asked].numpy(),
                    np.full(int(asked.sum()), number),
                    patchify(volume[None], PATCH)[0][asked.flatten()].numpy(),
                    inside / CROP,
                    (inside + corner) / SIDE,
                )
            )
    return Crops(torch.stack(volumes), torch.stack(chosen), *map(np.concatenate, zip(*rows, strict=True)))


def real_volumes() -> Path | None:
    """Return where the real volumes lie, or None."""
    folder = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / "volumes"
    return folder if folder.is_dir() else None


def write_real(source: Path, folder: Path) -> Mapping[str, Path]:
    """Write the real scans of heads that were scanned twice at the spacing of the study; return them by name."""
    written = {}
    for name in sorted({one for pair in REAL_PAIRS.values() for one in pair}):
        path = folder / f"{name}.nii.gz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = read_volume(source / "mr" / f"{name}.nii.gz", spacing_mm=SPACING_MM)
            nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), path)
        written[name] = path
    return written
