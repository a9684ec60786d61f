"""The volumes of the transfer study: generated heads, and real scans where they are at hand.

Each set has what pretraining sees, and cases with labels whose subjects it never sees.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.processing import resample_from_to

from voxelwave.data.reading.nifti import read_volume
from voxelwave.data.reading.volume import Volume
from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import LESIONS, MRI_CONTRASTS, Tissue, draw_head, render_ct, render_mri
from voxelwave.physics.smooth_noise import smooth_noise

SIDE = 32  # voxels of a generated head: the crop of every run, 96 mm
SPACING_MM = 3.0
AFFINE = np.diag((SPACING_MM, SPACING_MM, SPACING_MM, 1.0))
# Eight times as many MRI as CT, as in the large public sets.
PRETRAINED_ON = {"mri": 64, "ct": 8}
LABELLED, TESTED, PROBED = 12, 12, 96
CONTRAST_AGENT_HU = 150
NOISE = "noise"
NOISE_CELLS = {3: 1.0, 6: 0.7, 12: 0.4}  # along each edge, and how strong
REGIONS = {
    "cortex": [Tissue.GREY_MATTER],
    "white matter": [Tissue.WHITE_MATTER],
    "deep grey": [Tissue.DEEP_GREY],
    "ventricles": [Tissue.VENTRICLE],
    "cerebellum": [Tissue.CEREBELLUM],
    "brain stem": [Tissue.BRAIN_STEM],
}
# FreeSurfer's aparc+aseg, left and right.
APARC_ASEG = {
    "cortex": [3, 42, "1000-1035", "2000-2035"],
    "white matter": [2, 41, 77, "251-255"],
    "deep grey": ["10-13", 17, 18, 26, "49-54", 58],
    "ventricles": [4, 5, 14, 15, 43, 44],
    "cerebellum": [7, 8, 46, 47],
    "brain stem": [16],
}


@dataclass(frozen=True)
class Task:
    """Segmentation of the cases of a list: those marked "test" are only tested on."""

    name: str
    cases: Path
    modality: str
    classes: dict[str, list[Any]]
    counts: tuple[int, ...]


def generated(folder: Path) -> dict[str, Task]:
    """Write the heads where they are missing, and return the tasks; `<folder>/pretrain/<modality>` is unlabelled."""
    for modality, count in PRETRAINED_ON.items():
        for number in range(count):
            _head(folder / "pretrain" / modality, "pretrain", modality, number)
    for number in range(PRETRAINED_ON["mri"]):
        _noise(folder / NOISE / "mri" / f"mri_{number:03d}.nii.gz", number)
    tasks = {}
    for modality in PRETRAINED_ON:
        rows = [
            {"split": "train" if number < LABELLED else "test", **_labelled(folder, modality, number)}
            for number in range(LABELLED + TESTED)
        ]
        cases = _write_cases(folder, f"{modality}.csv", rows)
        tasks[f"generated {modality}"] = Task(f"generated {modality}", cases, modality, REGIONS, (1, 2, 4, 8, LABELLED))
    return tasks


def probe_cases(folder: Path, modality: str) -> Path:
    """Return a list of heads with targets for linear probes."""
    rows = []
    for number in range(PROBED):
        image, labels, array = _head(folder / "probe" / modality, "probe", modality, number)
        row = {"image": image, "label": labels, "modality": modality, "lesion": _has_lesion(labels)}
        if modality == "mri":
            row["contrast"] = number % len(MRI_CONTRASTS)
        else:
            vessels = np.asarray(nibabel.load(labels).dataobj) == Tissue.VESSEL
            row["contrast_agent"] = int(array[vessels].mean() > CONTRAST_AGENT_HU)
        rows.append(row)
    return _write_cases(folder, f"probe_{modality}.csv", rows)


def _labelled(folder: Path, modality: str, number: int) -> dict[str, Any]:
    image, labels, _ = _head(folder / "labelled" / modality, "labelled", modality, number, contrast="T1")
    return {"image": image, "label": labels, "modality": modality}


def _has_lesion(labels: Path) -> int:
    return int(np.isin(np.asarray(nibabel.load(labels).dataobj), LESIONS).any())


def _head(
    folder: Path, use: str, modality: str, number: int, *, contrast: str | None = None
) -> tuple[Path, Path, np.ndarray]:
    """Write head `number` unless it is there; every use has heads of its own. MRI contrasts take turns by default."""
    image, labels = folder / f"{modality}_{number:03d}.nii.gz", folder / f"{modality}_{number:03d}_labels.nii.gz"
    if not (image.exists() and labels.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        generator = numpy_generator("transfer", use, modality, number)
        drawn = draw_head(generator, size=SIDE)
        if modality == "mri":
            shown = render_mri(drawn, generator, contrast=contrast or MRI_CONTRASTS[number % len(MRI_CONTRASTS)])
        else:
            shown = render_ct(drawn, generator)
        for path, array in ((labels, drawn), (image, shown)):
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return image, labels, np.asarray(nibabel.load(image).dataobj)


def _noise(path: Path, number: int) -> None:
    """Write smooth noise of several scales in the place of a head, unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = numpy_generator("transfer", NOISE, number)
        noise = sum(strength * smooth_noise(generator, SIDE, cells) for cells, strength in NOISE_CELLS.items())
        nibabel.save(nibabel.Nifti1Image(np.asarray(noise - np.min(noise), np.float32), AFFINE), path)


def real_volumes() -> Path | None:
    """Return where the real volumes lie, or None."""
    folder = Path(os.environ.get("VOXELWAVE_REAL_DATA", "../shared/data")) / "volumes"
    return folder if folder.is_dir() else None


# Neither these nor another scan of their subjects is a task's.
REAL_MRI = (
    *("stroke_T1.nii.gz", "stroke_T2.nii.gz", "stroke_FLAIR.nii.gz", "ms_long01_FLAIR.nii.gz", "gbm1_T1c.nii.gz"),
    *("afni_T1_head_2mm.nii.gz", "afni_fmri.nii.gz", "mni152_T1_2mm.nii.gz", "mni152_T2_2mm.nii.gz"),
    "papaya_PD.nii.gz",
)
REAL_CT = ("ge_head_ct.nii.gz", "philips_plastic_head_shear_uint8.nii.gz", "ct_brain_atlas_1mm.nii.gz")


def real(source: Path, folder: Path) -> dict[str, Task]:
    """Write the real scans at the study's spacing, and return the tasks.

    One head has six regions, one a brain mask, one lesions, one CT template tissues. Where a second head with the same
    labels is missing, the left half is trained on and the right half tested: the same subject, never pretrained on.
    """
    for modality, place, names in (("mri", "mr", REAL_MRI), ("ct", "ct", REAL_CT)):
        for name in names:
            _at_spacing(source / place / name, folder / "pretrain" / modality)
    mri, ct = source / "mr", source / "ct"
    head, seg3d = mri / "mne_ecog_T1.mgz", mri / "seg3d_T1.nii.gz"
    aseg = np.asarray(nibabel.load(mri / "mne_ecog_aparc+aseg.mgz").dataobj).astype(np.int16)
    regions = nibabel.Nifti1Image(aseg, nibabel.load(head).affine)
    brain = nibabel.Nifti1Image((aseg > 0).astype(np.uint8), regions.affine)
    cases = {
        "regions": _halves(folder, "regions", head, regions),
        "MS lesions": _halves(folder, "lesions", mri / "ms07_FLAIR.nii.gz", nibabel.load(mri / "ms07_lesions.nii.gz")),
        "CT tissues": _halves(folder, "tissues", ct / "scct_cormack.nii", _tissues(ct), hounsfield=_from_cormack),
    }
    masks = {"brain of A": (head, brain), "brain of B": (seg3d, nibabel.load(mri / "seg3d_brain_mask.nii.gz"))}
    pairs = {name: _pair(folder / "brain", *mask) for name, mask in masks.items()}
    for tested in pairs:
        rows = [
            {**row, "modality": "mri", "split": "test" if name == tested else "train"} for name, row in pairs.items()
        ]
        cases[tested] = _write_cases(folder, f"{tested.replace(' ', '_')}.csv", rows)
    classes: dict[str, dict[str, list[Any]]] = {
        "regions": APARC_ASEG,
        "MS lesions": {"lesion": [1]},
        "CT tissues": {"grey matter": [1], "white matter": [2], "CSF": [3]},
    }
    return {
        f"real {name}": Task(
            f"real {name}", path, "ct" if name == "CT tissues" else "mri", classes.get(name, {"brain": [1]}), (1,)
        )
        for name, path in cases.items()
    }


def _at_spacing(path: Path, folder: Path, change: Callable[[np.ndarray], np.ndarray] | None = None) -> Path:
    """Write a scan towards RAS at the study's spacing, unless it is there."""
    written = folder / f"{path.name.partition('.')[0]}.nii.gz"
    if not written.exists():
        folder.mkdir(parents=True, exist_ok=True)
        volume = read_volume(path, spacing_mm=SPACING_MM)
        if change is not None:
            volume = Volume(change(volume.array), volume.affine)
        nibabel.save(nibabel.Nifti1Image(volume.array, volume.affine), written)
    return written


def _pair(
    folder: Path,
    image: Path,
    labels: nibabel.Nifti1Image,
    change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Write a scan and its labels on one grid."""
    written = _at_spacing(image, folder, change)
    on_grid = folder / f"{written.name.partition('.')[0]}_labels.nii.gz"
    if not on_grid.exists():
        grid = nibabel.load(written)
        nearest = resample_from_to(labels, (grid.shape, grid.affine), order=0)
        nibabel.save(nibabel.Nifti1Image(np.asarray(nearest.dataobj).astype(np.int16), grid.affine), on_grid)
    return {"image": written, "label": on_grid}


def _halves(
    folder: Path,
    name: str,
    image: Path,
    labels: nibabel.Nifti1Image,
    hounsfield: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Path:
    """Cut a scan and its labels in the middle of what is labelled: the left half is trained on."""
    whole = _pair(folder / name, image, labels, hounsfield)
    labelled = np.asarray(nibabel.load(whole["label"]).dataobj) > 0
    planes = np.flatnonzero(labelled.any((1, 2)))
    middle = int(planes[0] + planes[-1] + 1) // 2
    rows = []
    for split, cut in (("train", slice(None, middle)), ("test", slice(middle, None))):
        row: dict[str, Any] = {"modality": "ct" if hounsfield else "mri", "split": split}
        for kind, path in whole.items():
            row[kind] = path.with_name(path.name.replace(".nii.gz", f"_{split}.nii.gz"))
            nibabel.save(nibabel.load(path).slicer[cut], row[kind])
        rows.append(row)
    return _write_cases(folder, f"{name}.csv", rows)


def _tissues(ct: Path) -> nibabel.Nifti1Image:
    """Return the tissue that is most likely, where one is likelier than not."""
    maps = [nibabel.load(ct / f"sc{name}.nii.gz") for name in ("grey", "white", "csf")]
    shares = np.stack([np.asarray(of.dataobj) for of in maps])
    likeliest = np.where(shares.max(0) > 0.5, shares.argmax(0) + 1, 0)
    return nibabel.Nifti1Image(likeliest.astype(np.uint8), maps[0].affine)


def _from_cormack(values: np.ndarray) -> np.ndarray:
    """Return Hounsfield units of Cormack units, which stretch −100…100 HU elevenfold (Rorden et al., 2012)."""
    # -1000…-100 is 0…900, -100…100 is 900…3100, above that one to one.
    return np.interp(values, (0, 900, 3100, 4100), (-1000, -100, 100, 1100)).astype(np.float32)


def _write_cases(folder: Path, name: str, rows: Iterable[dict[str, Any]]) -> Path:
    rows = list(rows)
    path = folder / name
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            files = {key: value.relative_to(folder) for key, value in row.items() if isinstance(value, Path)}
            writer.writerow({**row, **files})
    return path
