"""Volumes from NIfTI and MGH files: float32, axes towards RAS, at the spacing asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from jaxtyping import Float32, Float64
from nibabel import imageglobals, orientations
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from numpy import ndarray

from voxelwave.data.modalities import Modality, UnusableVolume, without_trailing_ones

SUFFIXES = (".nii", ".nii.gz", ".mgz")
SMALLEST_SIDE = 8
SAME_SPACING_MM = 1e-3

LABEL_WORDS = re.compile(
    "labels?|labelmap|d?segs?|probseg|segmentations?|masks?|aparc|aseg|wmparc|parcellations?|lesions?|tumou?rs?"
    "|scribbles?|rois?|annotations?"
)
SAMPLED_VOXELS = 100_000
SAMPLED_PLANES = 16
FEW_VALUES = 32
MOSTLY_EQUAL = 0.7


@dataclass(frozen=True)
class VolumeInfo:
    """What a header says: `shape` and `spacing_mm` in the order of storage, `orientation` such as "LPS"."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    orientation: str
    dtype: str

    def problem(self, channels: int = 3) -> str | None:
        """Say why the file cannot be a volume of one or of `channels` channels, or None."""
        if self.dtype in ("RGB", "complex"):
            return f"its voxels are {self.dtype} values, one real number each is needed"
        shape = without_trailing_ones(self.shape)
        if len(shape) < 3 or min(shape[:3]) < SMALLEST_SIDE:
            return f"too small: each of three axes needs {SMALLEST_SIDE} voxels, got shape {self.shape}"
        if (more := shape[3:]) and (more[:-1] not in ((), (1,)) or more[-1] != channels):
            return f"{len(shape)} axes: one volume a file is needed, got shape {self.shape}"
        if "?" in self.orientation:
            return "its affine is singular, so neither orientation nor spacing is known"
        return None


class Volume(NamedTuple):
    """Values [D, H, W] or [D, H, W, channels], axes to right, anterior, superior; `affine` leads to mm."""

    array: Float32[ndarray, "..."]
    spacing_mm: tuple[float, float, float]
    affine: Float64[ndarray, "4 4"]


def has_volume_suffix(path: Path) -> bool:
    """Tell whether the name of `path` ends like a volume."""
    return path.name.lower().endswith(SUFFIXES)


def read_header(path: Path) -> VolumeInfo:
    """Read the header alone; raises UnusableVolume where there is none."""
    with _as_unusable(path):
        return _info(nibabel.load(path))


def read_volume(
    path: Path, *, channels: int = 3, spacing_mm: float | tuple[float, float, float] | None = None
) -> Volume:
    """Read [D, H, W] or [D, H, W, channels], towards RAS, resampled (trilinear) where `spacing_mm` is given.

    Raises:
        UnusableVolume: with a short reason, for whatever cannot be read or is not one volume.
    """
    with _as_unusable(path):
        image = nibabel.load(path)
        if problem := _info(image).problem(channels):
            raise UnusableVolume(problem)
        volume = _towards_ras(image)
    return volume if spacing_mm is None else resample(volume, spacing_mm)


def read_channels(
    path: Path, modality: Modality, *, spacing_mm: float | tuple[float, float, float] | None = None
) -> Float32[ndarray, "channel depth height width"]:
    """Read a file as `modality` wants it; raises UnusableVolume, also for a label map."""
    volume = read_volume(path, channels=modality.channels)
    # Before resampling, which would blur the whole numbers of labels.
    if reason := label_map_reason(path, volume.array):
        raise UnusableVolume(reason)
    return modality((volume if spacing_mm is None else resample(volume, spacing_mm)).array, str(path))


def resample(volume: Volume, spacing_mm: float | tuple[float, float, float]) -> Volume:
    """Resample by trilinear interpolation to `spacing_mm`, unless that is the spacing already."""
    target = (spacing_mm,) * 3 if isinstance(spacing_mm, int | float) else spacing_mm
    if np.allclose(volume.spacing_mm, target, rtol=0, atol=SAME_SPACING_MM):
        return volume
    # Importing MONAI takes seconds, and most data sets are stored at their spacing already.
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    single = volume.array.ndim == 3
    channels_first = volume.array[None] if single else np.ascontiguousarray(np.moveaxis(volume.array, -1, 0))
    spacing = Spacing(pixdim=target, mode="bilinear", padding_mode="border")
    resampled = spacing(MetaTensor(channels_first, affine=volume.affine))
    values = resampled.as_tensor().float().numpy()
    values = values[0] if single else np.ascontiguousarray(np.moveaxis(values, 0, -1))
    affine = np.asarray(resampled.affine, dtype=np.float64)
    return Volume(values, _spacing_mm(affine), affine)


def label_map_reason(path: Path, array: ndarray | None = None) -> str | None:
    """Say why a file is a label map and not an image, by its name or by its values, or None.

    Of the name the last word counts, numbers aside: `lesion_study_T1` is an image, `T1_lesion_2` is not. By
    its values a file is a label map where all are whole numbers and either at most 32 differ (8-bit images
    hold more) or most voxels outside the background equal their neighbour (in images the noise prevents
    that).
    """
    stem = path.name.lower().split(".nii")[0].removesuffix(".mgz")
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


@contextmanager
def _as_unusable(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes nibabel raise into an UnusableVolume, and keep its log silent."""
    try:
        with imageglobals.LoggingOutputSuppressor(), np.errstate(all="ignore"):
            yield
    except UnusableVolume:
        raise
    # From arbitrary bytes a reader raises anything: zlib.error, struct.error, OverflowError, MemoryError, …
    except Exception as error:
        raise UnusableVolume(_unreadable_reason(path, error)) from error


def _unreadable_reason(path: Path, error: Exception) -> str:
    if not path.is_file():
        return "no such file"
    try:
        with path.open("rb") as stream:
            start = stream.read(256).lstrip().lower()
    except OSError as denied:
        return f"unreadable: {denied.strerror}"
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer, not the file itself: run `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a volume: download it again"
    if isinstance(error, EOFError):
        return "cut off: the compressed data ends too early"
    if isinstance(error, ImageFileError):
        return "not a NIfTI or MGH file"
    return f"unreadable: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _info(image: Any) -> VolumeInfo:
    dtype = image.get_data_dtype()
    kind = "RGB" if dtype.fields else "complex" if dtype.kind == "c" else dtype.name
    codes = nibabel.aff2axcodes(image.affine) if np.isfinite(image.affine).all() else (None,) * 3
    orientation = "".join(code or "?" for code in codes)
    return VolumeInfo(tuple(int(side) for side in image.shape), _spacing_mm(image.affine), orientation, kind)


def _spacing_mm(affine: Float64[ndarray, "4 4"]) -> tuple[float, float, float]:
    first, second, third = (float(side) for side in voxel_sizes(affine))
    return first, second, third


def _towards_ras(image: Any) -> Volume:
    """Return the values of `image` in float32 with the axes as close to RAS as flips and swaps bring them."""
    stored = np.asarray(image.dataobj.get_unscaled())
    stored = stored.reshape(without_trailing_ones(stored.shape))
    if stored.ndim == 5:
        stored = stored[:, :, :, 0]
    steps = orientations.io_orientation(image.affine)
    # Move the axes in the type as stored and scale in float32: nibabel itself would go through float64.
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    array = np.ascontiguousarray(orientations.apply_orientation(native, steps)).astype(np.float32, copy=False)
    array = array if array.flags.writeable else array.copy()
    slope, inter = image.dataobj.slope, image.dataobj.inter
    if (slope, inter) != (1, 0):
        array *= np.float32(slope)
        array += np.float32(inter)
    affine = image.affine @ orientations.inv_ornt_aff(steps, stored.shape[:3])
    return Volume(array, _spacing_mm(affine), affine)
