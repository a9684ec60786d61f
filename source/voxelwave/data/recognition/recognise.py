"""What a scan is: by what was said of it, by its header, its name and, as the last, its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float32
from numpy import ndarray

from voxelwave.data.recognition.labels import label_map_reason
from voxelwave.data.recognition.rules import (
    DICOM_MODALITIES,
    Told,
    contradiction,
    modality_by_content,
    modality_by_name,
)
from voxelwave.errors import UnusableVolume

GIVEN = "--modality"


class NotAnImage(UnusableVolume):
    """A file is a label map, on which nothing is to be trained."""


@runtime_checkable
class HasValues(Protocol):
    """What reading a scan returns."""

    @property
    def array(self) -> Float32[ndarray, "..."]:
        """The values [D, H, W] or [D, H, W, channels]."""
        ...


ScanT = TypeVar("ScanT", bound=HasValues)


def told_beforehand(path: Path, root: Path, *, given: str | None = None, tag: str | None = None) -> Told:
    """Tell the modality of a scan before its values are read.

    Args:
        root: the folder that was searched; folders above it are not asked.
        given: the modality that the user states; nothing else is asked then.
        tag: the Modality of a DICOM header; names are not asked then.
    """
    if given:
        return Told(given, GIVEN)
    if tag is not None:
        return Told(DICOM_MODALITIES.get(tag, ""), f"the DICOM modality {tag}")
    return modality_by_name(path, root)


def recognise(told: Told, name: Path, read: Callable[[], ScanT], *, problem: str | None = None) -> tuple[Told, ScanT]:
    """Read a scan, once, and tell its modality also by its values; where nothing tells it, it stays None.

    Args:
        told: as `told_beforehand` returns it.
        name: of the file; an empty path where its name may not tell a label map.
        read: reads the values; it is not called where something speaks against the scan already.
        problem: why the header speaks against it, None where it does not.

    Raises:
        NotAnImage: for a label map, told by its name or by its values.
        UnusableVolume: for a modality that cannot be used, for `problem`, for values that contradict a name or a DICOM
            tag, and whatever `read` raises.
    """
    # 1. What is known before the values are read.
    if told.modality == "":
        told.known()
    if problem is not None:
        raise UnusableVolume(problem)
    if reason := label_map_reason(name):
        raise NotAnImage(reason)
    # 2. The values.
    scan = read()
    if reason := label_map_reason(name, scan.array):
        raise NotAnImage(reason)
    if told.modality is None:
        told = modality_by_content(scan.array)
    if told.rule != GIVEN and (contradicted := contradiction(told, scan.array)):
        raise UnusableVolume(contradicted)
    return told, scan
