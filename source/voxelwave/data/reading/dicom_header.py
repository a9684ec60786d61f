"""What the headers of DICOM files say of their slices, classic (one a file) and enhanced (many a file)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

Vector = tuple[float, float, float]

MODALITIES = ("CT", "MR")
GREY = ("MONOCHROME1", "MONOCHROME2")
RIGHT_ANGLE = 1e-2  # sine; some scanners store three decimals
PLACE = ("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# In what images of one series at one position may differ; enhanced files have names of their own.
APART = (
    *("AcquisitionNumber", "EchoTime", "TemporalPositionIdentifier", "DiffusionBValue", "InversionTime"),
    *("TriggerTime", "StackID", "EffectiveEchoTime", "TemporalPositionIndex", "ImageType", "FrameType"),
)
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GE_IMAGE_KIND = (0x0043, 0x102F)  # private to GE, whose ImageType does not tell phase from magnitude
# PatientName is not among them: what is not read cannot leak.
KEYWORDS = (
    *("SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID", "Modality", "SeriesDescription", "PatientID"),
    *("NumberOfFrames", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "ComplexImageComponent"),
    *(*PLACE, *APART, SHARED, PER_FRAME, GE_IMAGE_KIND),
)
# What an MR image may hold instead of magnitudes, by words of its ImageType and by GE's number (PS3.3 C.8.13.3.1.1).
COMPONENTS = {
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "1"), "phase"),
    **dict.fromkeys(("R", "REAL", "2"), "the real part"),
    **dict.fromkeys(("I", "IMAGINARY", "3"), "the imaginary part"),
}


@dataclass(frozen=True)
class Slice:
    """Where a slice is stored, where its first voxel lies (mm, LPS), and what its stored values mean.

    `padding` is the range of stored values that stand for no measurement. Of an inverted slice (MONOCHROME1) the lowest
    values are the brightest: `inverted` is what a stored value and its bright counterpart add up to.
    """

    file: Path
    frame: int
    position_mm: Vector = (0.0, 0.0, 0.0)
    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[int, int] | None = None
    inverted: int | None = None


@dataclass(frozen=True)
class Series:
    """One volume of a DICOM series with its slices in the order of position, or the `problem` why there is none.

    `uid` is the SeriesInstanceUID, with a checksum where several volumes share it; `part` tells those of one patient,
    study and folder apart, such as "EchoTime 4.6"; `instance` is the SOPInstanceUID of a file of several frames.
    `patient` is a token for the PatientID ("" for none): who holds a list of PatientIDs, or tries all short numbers,
    finds which one it was. `description` is free text and may hold anything.
    """

    uid: str
    modality: str
    description: str
    patient: str
    study: str = ""
    shape: tuple[int, int] = (0, 0)  # columns, rows
    steps_mm: tuple[Vector, Vector] = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))  # to the next column and row, LPS
    dtype: str = ""
    slices: tuple[Slice, ...] = ()
    part: str = ""
    instance: str = ""
    problem: str | None = None
    note: str = ""

    @property
    def study_token(self) -> str:
        """A token for the StudyInstanceUID ("" for none)."""
        return _token(self.study)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order of position."""
        return tuple(dict.fromkeys(piece.file for piece in self.slices))


class Plane(NamedTuple):
    """One slice and the series, still without slices, that its header describes."""

    series: Series
    piece: Slice
    instance: str
    apart: Mapping[str, str]


def read_planes(file: Path, dataset: Any) -> Iterator[Plane]:
    """Yield the slices of `file` from its pydicom `dataset`.

    Raises ValueError where it names no series, or a value is none of its kind.
    """
    top = _values(dataset)
    if not top.get("SeriesInstanceUID"):
        raise ValueError("no SeriesInstanceUID, so it is no DICOM image")
    for group in dataset.get(SHARED) or ():
        top |= _grouped(group)
    own = [_grouped(group) for group in dataset.get(PER_FRAME) or ()]
    count = int(top.get("NumberOfFrames") or 1)
    if count > 1 and count != len(own):
        yield _plane(file, 0, top, _refusal(top) or "several frames, and not the position of each")
        return
    for frame in range(count):
        values = top | own[frame] if own else top
        yield _plane(file, frame, values, _refusal(values))


def _plane(file: Path, frame: int, values: Mapping[str, Any], problem: str | None) -> Plane:
    patient = str(values.get("PatientID") or "").strip()
    series = Series(
        uid=_text(values["SeriesInstanceUID"]),
        modality=_text(values.get("Modality")),
        description=_text(values.get("SeriesDescription")),
        patient=_token(patient),
        study=_text(values.get("StudyInstanceUID")),
        instance=_text(values.get("SOPInstanceUID")) if int(values.get("NumberOfFrames") or 1) > 1 else "",
        problem=problem,
    )
    instance = f"{values.get('SOPInstanceUID') or file}#{frame}"
    if problem:
        return Plane(series, Slice(file, frame), instance, {})
    # The first direction is that of a row, along which the column grows; the first spacing is that between rows.
    along_row, along_column = np.reshape(_numbers(values["ImageOrientationPatient"]), (2, 3))
    between_rows, between_columns = _numbers(values["PixelSpacing"])
    series = replace(
        series,
        shape=(int(values["Columns"]), int(values["Rows"])),
        steps_mm=(_vector(along_row * between_columns), _vector(along_column * between_rows)),
        dtype=f"{'int' if values.get('PixelRepresentation') else 'uint'}{values.get('BitsAllocated')}",
    )
    slope = values.get("RescaleSlope")
    piece = Slice(
        file,
        frame,
        position_mm=_vector(_numbers(values["ImagePositionPatient"])),
        slope=1.0 if slope is None else float(slope),
        intercept=float(values.get("RescaleIntercept") or 0.0),
        padding=_padding(values),
        inverted=_inverted(values),
    )
    return Plane(series, piece, instance, {name: _text(values[name]) for name in APART if name in values})


def _refusal(values: Mapping[str, Any]) -> str | None:
    if (modality := _text(values.get("Modality"))) not in MODALITIES:
        return f"its modality is {modality or 'unknown'}, not CT or MR"
    if any("LOCALIZER" in _text(values.get(name)).upper().split("/") for name in ("ImageType", "FrameType")):
        return "a localizer"
    if (component := _component(values)) is not None:
        return f"its values are {component}, not magnitudes"
    if not (photometric := _text(values.get("PhotometricInterpretation"))):
        return "no PhotometricInterpretation, so it is cut off or no image"
    if photometric not in GREY:
        return f"its pixels are {photometric}, one grey value each is needed"
    if photometric == "MONOCHROME1" and modality == "CT":
        return "its pixels are MONOCHROME1, so its values may be inverted Hounsfield units: store it as MONOCHROME2"
    if values.get("HighBit") is not None and values["HighBit"] != values.get("BitsStored", 0) - 1:
        return "its HighBit is not BitsStored - 1, so which bits of a pixel are its value is unknown"
    scale = {name: values.get(name) for name in ("RescaleSlope", "RescaleIntercept")}
    for name, value in scale.items():
        if value not in (None, "") and not (np.isfinite(float(value)) and (value or name == "RescaleIntercept")):
            return f"its {name} is {value}, so what its values mean is unknown"
    for name in PLACE:
        if not _text(values.get(name)):
            return f"no {name}, so where its voxels lie is unknown"
    directions = _numbers(values["ImageOrientationPatient"]).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), rtol=0, atol=RIGHT_ANGLE):
        return "its ImageOrientationPatient is not two directions at right angles"
    if not (_numbers(values["PixelSpacing"]) > 0).all():
        return "its PixelSpacing is not positive"
    return None


def _component(values: Mapping[str, Any]) -> str | None:
    """Return what the values of an MR image are where they are no magnitudes."""
    if _text(values.get("Modality")) != "MR":
        return None
    # The first two words say where pixels and patient come from.
    words = [word for name in ("ImageType", "FrameType") for word in _text(values.get(name)).upper().split("/")[2:]]
    words += [_text(values.get(name)).upper() for name in ("ComplexImageComponent", "GE_IMAGE_KIND")]
    return next((COMPONENTS[word] for word in words if word in COMPONENTS), None)


def _inverted(values: Mapping[str, Any]) -> int | None:
    if _text(values["PhotometricInterpretation"]) != "MONOCHROME1":
        return None
    bits = int(values.get("BitsStored") or values["BitsAllocated"])
    return -1 if values.get("PixelRepresentation") else 2**bits - 1


def _padding(values: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the lowest and the highest stored value that stands for no measurement (PS3.3 C.7.5.1.1.2).

    Many a file writes a signed value as the unsigned one of the same bits, or the other way round.
    """
    if values.get("PixelPaddingValue") is None:
        return None
    number = 2 ** int(values["BitsAllocated"])
    lowest = -number // 2 if values.get("PixelRepresentation") else 0
    given = (values["PixelPaddingValue"], values.get("PixelPaddingRangeLimit"))
    ends = [(int(one) - lowest) % number + lowest for one in given if one is not None]
    return min(ends), max(ends)


def _values(dataset: Any) -> dict[str, Any]:
    named = {element.keyword: element.value for element in dataset if element.VR != "SQ"}
    return named | ({"GE_IMAGE_KIND": dataset[GE_IMAGE_KIND].value} if GE_IMAGE_KIND in dataset else {})


def _grouped(group: Any) -> dict[str, Any]:
    """Return the values of the macros of a functional group, such as PlanePositionSequence, side by side."""
    # Makers add groups of their own, with elements of the same names that mean something else.
    macros = (of.value for of in group if of.VR == "SQ" and of.value and not of.tag.is_private)
    return {name: value for macro in macros for name, value in _values(macro[0]).items()}


def _numbers(value: Any) -> Float64[ndarray, "number"]:
    numbers = np.array([float(part) for part in value])
    if not np.isfinite(numbers).all():
        raise ValueError(f"its geometry has {numbers.tolist()}")
    return numbers


def _vector(values: Float64[ndarray, "3"]) -> Vector:
    x, y, z = values.tolist()
    return x, y, z


def _token(text: str) -> str:
    """Return a token for a text, and nothing for none."""
    return sha256(text.encode()).hexdigest()[:12] if text else ""


def _text(value: Any) -> str:
    """Return a value, or several joined by slashes, as one line of printable characters."""
    parts = value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    text = "/".join("" if part is None else str(part) for part in parts)
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
