"""The contact sheet of a data set: one page with three slices of each volume, and why files were refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image

from voxelwave.ops.files import replacing
from voxelwave.reports.pages import render

SIDE = 112
MARGIN = 2
BRIGHT = 0.1
SAMPLED_SIDE = 64
JPEG, JPEG_QUALITY = b"\xff\xd8\xff", 85


@dataclass(frozen=True)
class Entry:
    """What the page says of one file, in words; an empty text is left out.

    `told_by` says how the modality was told, `picture` is the path of the strip from the page, `reason` is
    why the file was refused, None where it was accepted.
    """

    name: str
    modality: str
    subject: str = ""
    shape: str = ""
    spacing: str = ""
    values: str = ""
    told_by: str = ""
    split: str = ""
    note: str = ""
    picture: str | None = None
    reason: str | None = None

    @property
    def known(self) -> dict[str, str]:
        """What stands beside or below the picture."""
        return {
            "Subject": self.subject,
            "Split": self.split,
            "Shape": self.shape,
            "Spacing": self.spacing,
            "Values": self.values,
            "Modality": " ".join(filter(None, (self.modality.upper(), self.told_by and f"({self.told_by})"))),
            "Note": self.note,
        }


def three_slices(
    volume: Float[ndarray, "channel depth height width"], spacing_mm: tuple[float, float, float]
) -> UInt8[ndarray, "row column"]:
    """Return the sagittal, coronal and axial slice of the first channel, each in a square of SIDE pixels.

    The axes of `volume` lead to right, anterior and superior, its values lie in [0, 1]. The slices lie as
    radiologists see them: sagittal with the front at the left, the others with the patient's right at the
    left. They go through the middle of what is bright and share one scale in pixels per mm.
    """
    values = volume[0]
    extent_mm = np.multiply(values.shape, spacing_mm)
    pixels_per_mm = (SIDE - 2 * MARGIN) / extent_mm.max()
    pixels = np.maximum(1, np.rint(extent_mm * pixels_per_mm)).astype(int)
    strip = np.zeros((SIDE, 3 * SIDE), dtype=np.uint8)
    for axis, position in enumerate(_bright_centre(values)):
        # Transposed and reversed, each plane has its higher axis upwards and R or A at the left.
        plane = np.moveaxis(values, axis, 0)[position].T[::-1, ::-1]
        grey = np.rint(255 * np.nan_to_num(np.clip(plane, 0, 1))).astype(np.uint8)
        across, up = np.delete(pixels, axis).tolist()
        top, left = (SIDE - up) // 2, (SIDE - across) // 2 + axis * SIDE
        # Pillow widens the filter where it shrinks, so that fine structure is averaged and not skipped.
        picture = Image.fromarray(grey).resize((across, up), Image.Resampling.BICUBIC)
        strip[top : top + up, left : left + across] = np.asarray(picture)
    return strip


def save_strip(path: Path, strip: UInt8[ndarray, "row column"]) -> None:
    """Write a strip of slices as a JPEG of some kilobytes, whole or not at all."""
    with replacing(path) as part:
        Image.fromarray(strip).save(part, "JPEG", quality=JPEG_QUALITY, optimize=True)


def is_picture(path: Path) -> bool:
    """Tell by how it begins whether a file is a JPEG, as `save_strip` writes it."""
    with path.open("rb") as file:
        return file.read(len(JPEG)) == JPEG


def contact_sheet(entries: Sequence[Entry], title: str, summary: Mapping[str, str]) -> str:
    """Return the page as HTML that needs nothing but the pictures beside it; `summary` stands at its top."""
    accepted: dict[str, list[Entry]] = {}
    refused: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.reason is None:
            accepted.setdefault(entry.modality, []).append(entry)
        else:
            refused.setdefault(_kind(entry.reason), []).append(entry)
    return render(
        "jobs/prepare/templates/contact_sheet.html",
        title=title,
        summary=summary,
        accepted=accepted,
        refused=sorted(refused.items(), key=lambda item: -len(item[1])),
        refusals=sum(map(len, refused.values())),
        modalities=sorted({entry.modality for entry in entries if entry.modality}),
        side=SIDE,
    )


def _bright_centre(values: Float[ndarray, "depth height width"]) -> list[int]:
    """Return the mean position of voxels above BRIGHT, from a subsample; the middle where there are none."""
    steps = [-(-side // SAMPLED_SIDE) for side in values.shape]
    bright = np.argwhere(values[tuple(slice(step // 2, None, step) for step in steps)] > BRIGHT)
    if not len(bright):
        return [side // 2 for side in values.shape]
    return [int(mean * step + step // 2) for mean, step in zip(bright.mean(0), steps, strict=True)]


def _kind(reason: str) -> str:
    """Return what reasons of a kind begin with: their details stand after a colon, a comma or in brackets."""
    return re.split(r"[:,(]", reason)[0].strip()
