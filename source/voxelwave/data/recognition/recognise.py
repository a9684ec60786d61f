"""What a scan is: an image of which modality, or a label map. The one order in which everything is asked."""

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
        """[D, H, W] or [D, H, W, channels]."""
        ...


ScanT = TypeVar("ScanT", bound=HasValues)


def told_beforehand(path: Path, root: Path, *, given: str | None = None, tag: str | None = None) -> Told:
    """Tell the modality of a scan before its values are read: as the user gives it, by DICOM tag, or by its names.

    Folders are asked up to `root`, the one that was searched.
    """
    if given:
        return Told(given, GIVEN)
    if tag is not None:
        return Told(DICOM_MODALITIES.get(tag, ""), f"the DICOM modality {tag}")
    return modality_by_name(path, root)


def recognise(told: Told, name: Path, read: Callable[[], ScanT], *, problem: str | None = None) -> tuple[Told, ScanT]:
    """Read a scan, at most once, and return it with its modality; that stays None where nothing tells it.

    Args:
        told: what `told_beforehand` returns.
        name: of the file; an empty path where the name does not count.
        read: reads the values.
        problem: what the header says against the scan.

    Raises:
        NotAnImage: for a label map, told by its name or by its values.
        UnusableVolume: for a modality that is none of those that can be used, for `problem`, and for values that
            contradict a name or a DICOM tag.
    """
    # 1. What is known before the values are read.
    if told.modality == "":
        told.known()
    if problem is not None:
        raise UnusableVolume(problem)
    if reason := label_map_reason(name):
        raise NotAnImage(reason)
    # 2. What the values tell.
    scan = read()
    if reason := label_map_reason(name, scan.array):
        raise NotAnImage(reason)
    if told.modality is None:
        told = modality_by_content(scan.array)
    if told.rule != GIVEN and (reason := contradiction(told, scan.array)):
        raise UnusableVolume(reason)
    return told, scan
