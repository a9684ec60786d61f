"""Volumes from NIfTI and MGH files."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float32
from nibabel.filebasedimages import ImageFileError
from numpy import ndarray

from voxelwave.data.reading.unreadable import as_unusable, check_gzip_end
from voxelwave.data.reading.volume import SMALLEST_SIDE, Spacing, Volume, VolumeInfo, one_of, resample, towards_ras
from voxelwave.errors import DamagedVolume, UnusableVolume
from voxelwave.ops.files import GZIPPED

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh")
# A NIfTI header has two affines, and which of them is believed differs from one viewer to the other.
PLACEMENT = (
    *("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "pixdim", "xyzt_units"),
)
MGH = b"\0\0\0\1"
LONGEST_HEADER = 1024  # bytes
WINDOWS = 3  # of a CT
MM = {1: 1000.0, 3: 0.001}  # of metre and micron; the others are mm, or not said


class _ScaledAsByItk:
    """Beside a slope, an intercept that is no number is 0; nibabel takes no such file."""

    def get_slope_inter(self) -> tuple[float | None, float | None]:
        slope, intercept = float(self["scl_slope"]), float(self["scl_inter"])  # type: ignore[index]
        if not slope or not np.isfinite(slope):
            return None, None
        return slope, intercept if np.isfinite(intercept) else 0.0


def _scaled_as_by_itk(kind: Any) -> Any:
    header = type(kind.header_class.__name__, (_ScaledAsByItk, kind.header_class), {})
    return type(kind.__name__, (kind,), {"header_class": header})


KINDS = tuple(map(_scaled_as_by_itk, (nibabel.Nifti1Image, nibabel.Nifti2Image)))


def read_header(path: Path) -> VolumeInfo:
    """Read the header alone; raises UnusableVolume where there is none."""
    with as_unusable(path), _opened(path) as (image, _):
        return _info(image)


def read_volume(
    path: Path, *, channels: int = 3, frame: int | None = None, spacing_mm: Spacing | None = None
) -> Volume:
    """Read [D, H, W] or [D, H, W, channels], towards RAS, resampled (trilinear) where `spacing_mm` is given.

    `frame` is the number of the volume in a file of several.

    Raises UnusableVolume with a short reason, for whatever cannot be read or is not one volume.
    """
    with as_unusable(path), _opened(path) as (image, stream):
        info = _info(image)
        if problem := info.problem(channels, several=frame is not None):
            raise UnusableVolume(problem)
        stored = np.asarray(image.dataobj.get_unscaled())
        if isinstance(stream, gzip.GzipFile):
            check_gzip_end(stream)
        if stored.shape != info.shape:
            stored = np.moveaxis(stored, 0, -1)
        stored = one_of(stored, frame)
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        volume = towards_ras(stored, info.affine, slope=slope, intercept=intercept)._replace(source=info)
    return volume if spacing_mm is None else resample(volume, spacing_mm)


def read_plane(path: Path) -> Float32[ndarray, "height width"]:
    """Read a plane in the middle of the first volume, axes as stored; raises UnusableVolume."""
    with as_unusable(path), _opened(path) as (image, _):
        return np.asarray(image.dataobj[:, :, image.shape[2] // 2, 0], dtype=np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield the image of a file, and the stream that it is read from; both by what is in it, not by its name.

    As in ITK, an intercept that is no number stands for 0.
    """
    with path.open("rb") as file, ExitStack() as streams:
        compressed = file.read(len(GZIPPED)) == GZIPPED
        file.seek(0)
        stream: Any = streams.enter_context(gzip.GzipFile(fileobj=file)) if compressed else file
        start = stream.read(LONGEST_HEADER)
        stream.seek(0)
        kind = next((kind for kind in KINDS if kind.header_class.may_contain_header(start)), None)
        if kind is None and start.startswith(MGH):
            kind = nibabel.MGHImage
        elif kind is None:
            raise ImageFileError
        yield kind.from_stream(stream), stream


def _info(image: Any) -> VolumeInfo:
    nifti = isinstance(image, nibabel.Nifti1Image)
    if nifti and (start := int(image.dataobj.offset)) < int(image.header["sizeof_hdr"]):
        raise DamagedVolume(f"its header says that the voxels begin at byte {start}, within the header: write it anew")
    dtype = image.get_data_dtype()
    kind = "RGB" if dtype.fields else "complex" if dtype.kind == "c" else dtype.name
    affine = np.asarray(_affine(image), dtype=np.float64)
    placement = {name: image.header[name].copy() for name in (PLACEMENT if nifti else ())}
    shape, notes = tuple(int(side) for side in image.shape), []
    if len(shape) == 4 and shape[0] == WINDOWS and min(shape[1:]) >= SMALLEST_SIDE:
        shape = (*shape[1:], WINDOWS)
        notes.append("its first axis holds three channels, as arrays of networks have them")
    if nifti and not (image.header["sform_code"] or image.header["qform_code"]):
        axes = VolumeInfo(shape, affine, kind).orientation
        notes.append(f"its header does not say where it lies (both form codes are 0): its axes are taken as {axes}")
    elif nifti and image.header["sform_code"] and (other := _qform(image)) is not None:
        axes, others = (VolumeInfo(shape, of, kind).orientation for of in (affine, other))
        if axes != others:
            notes.append(f"its two affines disagree (sform {axes}, qform {others}): its axes are taken as {axes}")
    return VolumeInfo(shape, affine, kind, placement, "; ".join(notes))


def _qform(image: Any) -> ndarray | None:
    try:
        qform: ndarray | None = image.get_qform(coded=True)[0]
    except ValueError:  # of a quaternion that is none
        return None
    return qform


def _affine(image: Any) -> ndarray:
    """Return the way from voxels to mm: of an sform that leads nowhere the qform is taken, as ITK does."""
    affine = image.affine
    if not isinstance(image, nibabel.Nifti1Image):
        return np.asarray(affine)
    leads = np.isfinite(affine).all() and np.linalg.matrix_rank(affine[:3, :3]) == 3
    if not leads and (other := _qform(image)) is not None:
        affine = other
    scale = np.diag([*[MM.get(int(image.header["xyzt_units"]) & 7, 1.0)] * 3, 1.0])
    return np.asarray(scale @ affine)
