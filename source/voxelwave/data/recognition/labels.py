"""How label maps are told from images: nothing is to be pretrained on a label map."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy import ndarray

LABEL_WORDS = re.compile(
    "labels?|labelmap|d?segs?|probseg|segmentations?|masks?|aparc|aseg|wmparc|parcellations?|lesions?|tumou?rs?"
    "|scribbles?|rois?|annotations?|gm|wm|csf|pve|pveseg|prob|probability|tpm"
)
SAMPLED_VOXELS = 100_000
SAMPLED_PLANES = 16
FEW_VALUES = 32
MOSTLY_EQUAL = 0.7
SUFFIXES = re.compile(r"(\.nii|\.mg[hz]|\.nrrd|\.nhdr|\.vxw|\.dcm|\.ima|\.gz)+$", re.IGNORECASE)


def without_suffix(name: str) -> str:
    """Return the name of a scan without the suffixes of its format."""
    return SUFFIXES.sub("", name)


def label_map_reason(path: Path, array: ndarray | None = None) -> str | None:
    """Say why a file is a label map and not an image, by its name or by its values, or None.

    The last word of the name that is no number counts: `lesion_study_T1` is an image, `T1_lesion_2` is not. By its
    values a file is a label map where all are whole numbers and either at most 32 differ (8-bit images hold more) or
    most voxels outside the background equal their neighbour (in images the noise prevents that).
    """
    stem = without_suffix(path.name.lower())
    words = [word for word in re.split(r"[\W_]+", stem) if word and not word[0].isdigit()]
    if words and LABEL_WORDS.fullmatch(words[-1].rstrip("0123456789")):
        return f"a label map by its name ('{words[-1]}')"
    if array is None:
        return None
    flat = array.reshape(-1)
    values, counts = np.unique(flat[:: max(1, flat.size // SAMPLED_VOXELS) | 1], return_counts=True)
    # A single value says that the volume is empty: its modality reports that.
    if len(values) < 2 or not np.isfinite(values).all() or not np.array_equal(values, np.round(values)):
        return None
    if len(values) <= FEW_VALUES:
        return f"a label map by its content: {len(values)} whole numbers from {values[0]:g} to {values[-1]:g}"
    planes = array[:: max(1, len(array) // SAMPLED_PLANES)]
    if array.ndim == 3 and (inside := planes[:, :, 1:] != values[counts.argmax()]).any():
        equal = float((planes[:, :, 1:] == planes[:, :, :-1])[inside].mean())
        if equal > MOSTLY_EQUAL:
            return f"a label map by its content: {equal:.0%} of the voxels equal their neighbour"
    return None
