"""What the XML header of ISMRMRD, which fastMRI's files hold too, says of the scan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree import ElementTree

from voxelwave.errors import UnusableVolume

LARGEST_SIDE = 2**16
LARGEST_FIELD_MM = 1e5
LONGEST_NUMBER, LONGEST_NAME = 40, 200

Size = tuple[int, int, int]
Extent = tuple[float, float, float]


@dataclass(frozen=True)
class RawHeader:
    """The first encoding of a header; axes are read-out, phase encoding, second phase encoding.

    Attributes:
        encoded_size: samples as measured, with oversampling.
        recon_size: pixels of the image.
        encoded_fov_mm: field of view as measured.
        recon_fov_mm: field of view of the image.
        first_line: lowest number of a line along the phase encoding.
        last_line: the highest one.
        center_line: the one with the origin of k-space.
        trajectory: "cartesian", "epi", "radial", …
        calibration: where lines for calibration are from: "embedded", "separate", …
        protocol: the name that the operator sees; free text.
    """

    encoded_size: Size
    recon_size: Size
    encoded_fov_mm: Extent
    recon_fov_mm: Extent
    first_line: int
    last_line: int
    center_line: int
    trajectory: str = "cartesian"
    calibration: str = ""
    protocol: str = ""

    @property
    def oversampling(self) -> float:
        """How much longer the measured field is than the image along the read-out; at least 1."""
        return max(1.0, self.encoded_fov_mm[0] / self.recon_fov_mm[0])

    def shown(self, size: tuple[int, int], field_mm: tuple[float, float]) -> tuple[tuple[int, int], Extent]:
        """Return what is shown of an image of `size` that covers `field_mm`: its height and width, and its extent.

        Pixels stay as they were measured: a scanner may interpolate them to its own matrix, and nothing here does.
        """
        sides, extents = list[int](), list[float]()
        for side, mm, recon, recon_mm in zip(size, field_mm, self.recon_size, self.recon_fov_mm, strict=False):
            shown = round(recon_mm * side / mm)
            # Lengths are rounded, the matrix of the image is not.
            sides.append(max(1, min(side, recon if abs(recon - shown) <= 1 else shown)))
            extents.append(sides[-1] * mm / side)
        return (sides[0], sides[1]), (extents[0], extents[1], self.recon_fov_mm[2])

    @property
    def measured_columns(self) -> tuple[int, int]:
        """First measured column of a k-space as wide as was encoded, and the one behind the last.

        What lies beside them was not measured, and is filled with zeros (fastMRI: padding_left, padding_right).
        """
        start = self.encoded_size[1] // 2 - self.center_line
        return max(0, start), min(self.encoded_size[1], start + self.last_line + 1)


def parse_raw_header(text: str) -> RawHeader:
    """Return what `text` says; raises UnusableVolume where it is no such header, or says what cannot be."""
    # Such a header needs no definitions of its own; in them lie all ways to make a parser read files or fill memory.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UnusableVolume("its ISMRMRD header defines entities, which none needs")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UnusableVolume(f"its ISMRMRD header is damaged: {str(error)[:80]}") from None
    encoded, recon = "encoding/encodedSpace", "encoding/reconSpace"
    encoded_size = _size(root, encoded)
    limits = "encoding/encodingLimits/kspace_encoding_step_1"
    return RawHeader(
        encoded_size=encoded_size,
        recon_size=_size(root, recon),
        encoded_fov_mm=_extent(root, encoded),
        recon_fov_mm=_extent(root, recon),
        first_line=_whole(root, f"{limits}/minimum", default=0),
        last_line=_whole(root, f"{limits}/maximum", default=encoded_size[1] - 1),
        center_line=_whole(root, f"{limits}/center", default=encoded_size[1] // 2),
        trajectory=_text(root, "encoding/trajectory") or "cartesian",
        calibration=_text(root, "encoding/parallelImaging/calibrationMode"),
        protocol=_text(root, "measurementInformation/protocolName"),
    )


def _text(root: ElementTree.Element, place: str) -> str:
    """Return the text of the first element at `place`, in whichever name space; "" for none."""
    found = root.findtext("/".join(f"{{*}}{name}" for name in place.split("/")))
    return (found or "").strip()[:LONGEST_NAME]


def _whole(root: ElementTree.Element, place: str, *, default: int | None = None, lowest: int = 0) -> int:
    text = _text(root, place)
    if not text and default is not None:
        return default
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER else -1
    if not lowest <= number <= LARGEST_SIDE:
        raise UnusableVolume(f"its ISMRMRD header says '{text[:LONGEST_NUMBER]}' for {place}, which cannot be")
    return number


def _size(root: ElementTree.Element, place: str) -> Size:
    x, y, z = (_whole(root, f"{place}/matrixSize/{axis}", lowest=1) for axis in "xyz")
    return x, y, z


def _extent(root: ElementTree.Element, place: str) -> Extent:
    x, y, z = (_length(root, f"{place}/fieldOfView_mm/{axis}") for axis in "xyz")
    return x, y, z


def _length(root: ElementTree.Element, place: str) -> float:
    text = _text(root, place)
    try:
        length = float(text) if len(text) <= LONGEST_NUMBER else math.nan
    except ValueError:
        length = math.nan
    if not 0 < length <= LARGEST_FIELD_MM:
        raise UnusableVolume(f"its ISMRMRD header says '{text[:LONGEST_NUMBER]}' for {place}, which cannot be")
    return length
