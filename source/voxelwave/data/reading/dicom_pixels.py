"""The values that a DICOM file stores, compressed or not, before any rescaling."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from voxelwave.data.reading.unreadable import extra
from voxelwave.errors import UnusableVolume

# What pydicom itself cannot read, by the transfer syntax (PS3.5, section 8.2).
CODECS = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",  # baseline
    "1.2.840.10008.1.2.4.51": "jpeg8_decode",  # of 12 bits
    "1.2.840.10008.1.2.4.57": "jpeg8_decode",  # lossless
    "1.2.840.10008.1.2.4.70": "jpeg8_decode",  # lossless, first-order prediction: the usual one of CT and MR
    "1.2.840.10008.1.2.4.80": "jpegls_decode",
    "1.2.840.10008.1.2.4.81": "jpegls_decode",
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",
    **dict.fromkeys((f"1.2.840.10008.1.2.4.20{number}" for number in (1, 2, 3)), "htj2k_decode"),
}

JPEG_2000 = b"\xff\x4f\xff\x51"  # the start of its code stream, and the marker of the size
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # markers of JPEG with a size, the last of JPEG-LS

DEFLATED = b"1.2.840.10008.1.2.1.99"
SYNTAX_IS_WITHIN = 1024  # bytes
AFTER_LENGTH = 144  # bytes of preamble, mark and the element that says how long the others of the file header are
MOST_INFLATED, CHUNK = 1 << 28, 1 << 20


def check_inflated_size(file: Path) -> None:
    """Raise UnusableVolume for a deflated file that inflates to more than a series holds: pydicom inflates it whole."""
    with file.open("rb") as stream:
        if DEFLATED not in stream.read(SYNTAX_IS_WITHIN):
            return
        stream.seek(0)
        stream.seek(extra("pydicom.filereader").read_file_meta_info(file).FileMetaInformationGroupLength + AFTER_LENGTH)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated, tail = 0, b""
        while chunk := tail or stream.read(CHUNK):
            inflated += len(inflater.decompress(chunk, CHUNK))
            if inflated > MOST_INFLATED:
                raise UnusableVolume(f"it inflates to more than {MOST_INFLATED >> 20} MB: store it as another syntax")
            tail = inflater.unconsumed_tail


def read_pixels(file: Path) -> Shaped[ndarray, "frame row column"]:
    """Read all frames of one grey value a pixel.

    Raises UnusableVolume where pixels are missing or are others than the header says, InputError without the extra.
    """
    pydicom = extra("pydicom")
    dataset = pydicom.dcmread(file, force=True)
    if "PixelData" not in dataset:
        raise UnusableVolume("cut off: its pixels are missing")
    # Without a file header the values can only be as DICOM writes them by default.
    dataset.file_meta.setdefault("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    count, size = int(dataset.get("NumberOfFrames") or 1), (dataset.Rows, dataset.Columns)
    codec = CODECS.get(dataset.file_meta.TransferSyntaxUID)
    if codec is None:
        return np.asarray(dataset.pixel_array).reshape(count, *size)
    decode = getattr(extra("imagecodecs"), codec)
    streams = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count))
    wrong = UnusableVolume(f"its pixels are not {count} times {size[0]} by {size[1]}, as its header says")
    # Before they are decoded: a few bytes may claim a size that no memory holds.
    if len(streams) != count or any(_claimed_size(stream) != size for stream in streams):
        raise wrong
    frames = [decode(stream) for stream in streams]
    if any(frame.shape != size for frame in frames):
        raise wrong
    return _signed(np.stack(frames), dataset)


def _claimed_size(stream: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that a frame of JPEG, JPEG-LS or JPEG 2000 says to have, None where it says none.

    Source: ITU-T T.81, B.2.2; T.87, C.2.2; T.800, A.5.1.
    """
    if (place := stream.find(JPEG_2000)) >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", stream, place + len(JPEG_2000) + 4)
        return bottom - top, right - left
    place = 2
    while place + 9 <= len(stream) and stream[place] == 0xFF:
        marker, length, rows, columns = struct.unpack_from(">xBHxHH", stream, place)
        if marker == 0xFF:  # a byte of filling
            place += 1
        elif marker in FRAMES:
            return rows, columns
        else:
            place += 2 + length
    return None


def _signed(stored: Shaped[ndarray, "frame row column"], dataset: Any) -> Shaped[ndarray, "frame row column"]:
    # JPEG knows no sign: negative values come out as bits, the sign being the highest of those stored.
    if dataset.PixelRepresentation == 0 or stored.dtype.kind != "u":
        return stored
    unused = np.uint8(8 * stored.itemsize - dataset.BitsStored)
    return (stored << unused).view(f"i{stored.itemsize}") >> unused
