"""Writes reconstructed volumes: HDF5 as the challenge wants it, NIfTI, DICOM, and a sheet of all slices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from numpy import ndarray
from PIL import Image

from voxelwave.data.kspace.images.geometry import ImageSize, PlacedSlices, place_slices
from voxelwave.data.kspace.info import KspaceInfo
from voxelwave.data.reading.unreadable import extra
from voxelwave.ops.files import replacing
from voxelwave.ops.loggers import logger

Images = Float32[ndarray, "slice row column"]

RECONSTRUCTION, SAMPLED = "reconstruction", "mask"
LONGEST_TEXT = 64  # of DICOM's LO
MR_IMAGE, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
ANONYMOUS = "ANONYMOUS"
FIRST_DICOM = "0001.dcm"
HIGHEST = 2**16 - 1
BRIGHTEST = 99.9  # percent: single bright pixels, as of vessels, would leave all else dark


def write_hdf5(
    path: Path,
    images: Images,
    attributes: Mapping[str, str | float],
    sampled: Bool[ndarray, " width"] | None = None,
) -> None:
    """Write the dataset `reconstruction`, with attributes of the file, and as `mask` which columns were sampled.

    Raises OSError where the disk does not take it.
    """
    with replacing(path) as part, h5py.File(part, "w") as file:
        file[RECONSTRUCTION] = images
        if sampled is not None:
            file[SAMPLED] = sampled
        for name, value in attributes.items():
            file.attrs[name] = value


def write_nifti(path: Path, images: Images, info: KspaceInfo) -> None:
    """Write a NIfTI file with axes row, column, slice; slices in the order in which they lie.

    Where nothing says where the volume lies, sform and qform have code 0, unknown, and a note is logged.
    Raises ValueError as `place_slices` does, InputError as `PlacedSlices.affine` does, OSError for the disk.
    """
    placed = _placed(path, images, info)
    affine = placed.affine()
    image = nibabel.Nifti1Image(np.ascontiguousarray(images[placed.order()].transpose(1, 2, 0)), affine)
    code = "scanner" if placed.is_known else "unknown"
    image.set_sform(affine, code)
    # A rotation alone fits into a qform: of slices that are shifted along each other it says what comes nearest.
    image.set_qform(affine, code, strip_shears=True)
    image.header.set_xyzt_units("mm")
    with replacing(path) as part:
        nibabel.save(image, part)


def write_dicom(folder: Path, images: Images, info: KspaceInfo, *, name: str, description: str = "") -> list[Path]:
    """Write one series, a file a slice, into `folder`, and return the files; the first is written last.

    The values are 16-bit whole numbers with a slope. UIDs follow from `name`, that of the scan, and from the images:
    the same volume has the same ones, and volumes of one scan are of one study. `name` is not written. Patient and
    times are empty, and `description` keeps printable ASCII alone.

    MR Image Storage, where the file says where its slices lie. Where it does not, the images are secondary captures,
    which need not claim a place or a side, and a note is logged. highdicom has no class for MR images that no DICOM
    series was there before: its parametric maps must not be rescaled, and few readers know them.

    Raises ValueError as `place_slices` does, InputError where the extra `dicom` is not installed, OSError for the disk.
    """
    pydicom = extra("pydicom")
    placed = _placed(folder, images, info)
    stored, slope, intercept = _whole_numbers(images)
    digest = sha256(np.ascontiguousarray(images, "<f4").tobytes()).hexdigest()

    def uid(*of: str) -> Any:
        return pydicom.uid.generate_uid(entropy_srcs=["voxelwave", name, *of])

    shared = {
        "SOPClassUID": MR_IMAGE if placed.is_known else SECONDARY_CAPTURE,
        "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid("series", digest, description),
        "PatientName": ANONYMOUS,
        "PatientID": ANONYMOUS,
        "SeriesDescription": _plain(description),
        "RescaleSlope": _decimal(slope),
        "RescaleIntercept": _decimal(intercept),
    }
    if placed.is_known:
        shared["FrameOfReferenceUID"] = uid("place")
    folder.mkdir(parents=True, exist_ok=True)
    files = list[Path]()
    for number, pixels in reversed([*enumerate(stored)]):
        dataset = pydicom.Dataset()
        tags = {**CONSTANT, **shared, **_place_tags(placed, number)}
        tags |= {"SOPInstanceUID": uid("image", digest, description, str(number)), "InstanceNumber": number + 1}
        tags |= {"Rows": pixels.shape[0], "Columns": pixels.shape[1], "PixelData": pixels.tobytes()}
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        files.append(folder / f"{number + 1:04d}.dcm")
        with replacing(files[-1]) as part:
            dataset.save_as(part, enforce_file_format=True)
    return files[::-1]


def write_png(path: Path, images: Images) -> None:
    """Write a sheet of all slices, row by row, in grey from 0 to what nearly all values lie below.

    Raises OSError where the disk does not take it.
    """
    slices, rows, columns = images.shape
    across = math.ceil(math.sqrt(slices * rows / columns))
    sheet = np.zeros((math.ceil(slices / across) * rows, across * columns), np.uint8)
    for number, grey in enumerate(as_grey(images)):
        top, left = (number // across) * rows, (number % across) * columns
        sheet[top : top + rows, left : left + columns] = grey
    with replacing(path) as part:
        Image.fromarray(sheet).save(part, "PNG")


def as_grey(images: Images) -> UInt8[ndarray, "slice row column"]:
    """Return images as 8-bit grey on one scale; what is not finite is black."""
    values = np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0)
    white = float(np.percentile(values, BRIGHTEST)) or float(values.max())
    return np.asarray(np.rint(np.clip(values / (white if white > 0 else 1), 0, 1) * 255), dtype=np.uint8)


# What all images have; empty is what the standard wants to be there and nothing here says.
CONSTANT: Mapping[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 6",
    "Modality": "MR",
    **dict.fromkeys(("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"), ""),
    **dict.fromkeys(("PatientBirthDate", "PatientSex", "PositionReferenceIndicator", "Laterality"), ""),
    "SeriesNumber": 1,
    "Manufacturer": "voxelwave",
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "no text of the scan was taken over",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
    "RescaleType": "US",
    "BurnedInAnnotation": "NO",
}


def _place_tags(placed: PlacedSlices, number: int) -> dict[str, Any]:
    """Return the tags that say where a slice lies, or that nobody knows it."""
    spacing = [_decimal(value) for value in placed.spacing_mm]
    if not placed.is_known:
        return {
            "ImageType": ["DERIVED", "SECONDARY"],
            "ConversionType": "WSD",
            "PixelSpacing": spacing,
            "ImageComments": _plain(placed.note),
            "PatientOrientation": "",
        }
    row, column = placed.row_step_mm[number], placed.column_step_mm[number]
    directions = [*column / np.linalg.norm(column), *row / np.linalg.norm(row)]
    tags = {
        "ImageType": ["DERIVED", "PRIMARY", "OTHER"],
        # RM: research mode.
        **{"ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "2D"},
        **dict.fromkeys(("EchoTime", "RepetitionTime", "EchoTrainLength", "PatientPosition"), ""),
        "ImagePositionPatient": [_decimal(value) for value in placed.first_mm[number]],
        "ImageOrientationPatient": [_decimal(value) for value in directions],
        "PixelSpacing": spacing,
        "SliceThickness": _decimal(placed.thickness_mm),
    }
    if len(placed.first_mm) > 1:
        gap = np.linalg.norm(placed.first_mm[-1] - placed.first_mm[0]) / (len(placed.first_mm) - 1)
        tags["SpacingBetweenSlices"] = _decimal(float(gap))
    return tags


def _placed(path: Path, images: Images, info: KspaceInfo) -> PlacedSlices:
    placed = place_slices(info, ImageSize(*images.shape))
    if placed.note:
        logger.warning("note: %s: %s", path, placed.note)
    return placed


def _whole_numbers(images: Images) -> tuple[UInt16[ndarray, "slice row column"], float, float]:
    """Return images as 16-bit numbers, and the slope and intercept that undo it, as DICOM's decimals hold them."""
    intercept = float(_decimal(min(float(images.min()), 0.0)))
    slope = float(_decimal((float(images.max()) - intercept) / HIGHEST)) or 1.0
    stored = np.rint((images.astype(np.float64) - intercept) / slope)
    return np.clip(stored, 0, HIGHEST).astype("<u2"), slope, intercept


def _decimal(value: float) -> str:
    """Return a number in the 16 characters that DICOM's DS has."""
    return f"{value:.9g}"


def _plain(text: str) -> str:
    """Return what of a text is printable ASCII, in DICOM's length; a backslash would part it into values."""
    kept = "".join(sign if " " <= sign <= "~" and sign != "\\" else " " for sign in text)
    return " ".join(kept.split())[:LONGEST_TEXT].strip()
