"""Generated heads as NIfTI files: many of one size, and one each of the kinds of scan that take different work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from scipy.ndimage import zoom

from voxelwave.ops.seeding import numpy_generator
from voxelwave.physics.heads3d import MRI_CONTRASTS, draw_head, render_ct, render_mri

DRAWN = 4  # the others are these shifted: to draw one takes longer than to prepare ten
NOISE_HU = 8.0
KINDS = ("mri_1mm", "mri_0.9mm", "ct_1mm", "ct_fine")


def make_heads(folder: Path, *, volumes: int, size: int) -> None:
    """Write `volumes` MRI and CT of `size` and 1 mm to `many`, and one volume of each kind to `kinds`."""
    # As converters write them; nibabel's own 1 makes larger files.
    nibabel.openers.Opener.default_compresslevel = 6
    heads = []
    for number, contrast in zip(range(DRAWN), MRI_CONTRASTS, strict=True):
        generator = numpy_generator("heads", number)
        labels = draw_head(generator, size=size)
        # Scanners store whole numbers.
        mri = np.rint(render_mri(labels, generator, contrast=contrast)).astype(np.int16)
        heads.append(("ct", render_ct(labels, generator)) if number % 2 else ("mri", mri))
    for number in range(volumes):
        modality, head = heads[number % DRAWN]
        _save(folder / "many" / modality / f"sub-{number:03d}.nii.gz", np.roll(head, number // DRAWN, axis=0))
    (_, mri), (_, ct) = heads[:2]
    kinds = ((mri, (1, 1, 1)), (mri, (0.9, 0.9, 0.9)), (ct, (1, 1, 1)), (_fine(ct), (0.5, 0.5, 1)))
    for kind, (head, spacing_mm) in zip(KINDS, kinds, strict=True):
        _save(folder / "kinds" / kind / kind.split("_")[0] / "sub-01.nii.gz", head, spacing_mm)


def _fine(ct: np.ndarray) -> np.ndarray:
    """Return a CT of 1 mm, 256 voxels wide, as 512×512×300."""
    sides = np.array((512, 512, 300)) * ct.shape[0] // 256
    fine = zoom(ct.astype(np.float32), sides / ct.shape[0], order=1)
    # Interpolation takes noise away, and what has less is packed and read faster than a scan.
    fine += numpy_generator("noise").normal(0, NOISE_HU, fine.shape).astype(np.float32)
    return np.rint(fine.clip(-1024, 3071)).astype(np.int16)


def _save(path: Path, head: np.ndarray, spacing_mm: Sequence[float] = (1, 1, 1)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(head, np.diag((*spacing_mm, 1.0))), path)
