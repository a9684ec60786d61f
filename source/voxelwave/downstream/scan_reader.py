"""Reads scans as a backbone saw them when it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from voxelwave.data.listing.discovery import VolumeFile
from voxelwave.data.listing.selection import refusal_reason
from voxelwave.data.modalities import Modality
from voxelwave.data.scaled import Scaled, read_scaled
from voxelwave.downstream.description import modality_settings
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.registry import MODALITIES


class ScanReader:
    """Reads files with the spacing and the scaling that the description of `features` names."""

    def __init__(self, features: FeaturePyramid) -> None:
        self._counts = features.in_channels
        self._settings = modality_settings(features.description)
        self._spacing_mm = _spacing(features.description.get("preprocessing", {}).get("spacing_mm"))
        self._readers: dict[str, Modality] = {}

    def modality(self, name: str) -> Modality:
        """Return what scales a modality; raises InputError for one with another channel count than the backbone has."""
        if name not in self._readers:
            reader: Modality = MODALITIES.build(name, **self._settings.get(name, {}))
            if reader.channels not in self._counts:
                trained = " or ".join(map(str, self._counts))
                raise InputError(
                    f"the backbone takes volumes of {trained} channels, and {name} has {reader.channels}: "
                    f"leave such scans out with --modality, or take a backbone that was trained on {name}"
                )
            self._readers[name] = reader
        return self._readers[name]

    def __call__(self, path: Path, modality: str) -> Scaled:
        """Read a whole scan, stored or not.

        Raises:
            UnusableVolume: with a short reason, for a stored volume also where it was prepared otherwise.
            InputError: see `modality`.
        """
        reader = self.modality(modality)
        file = VolumeFile(path, modality)
        if reason := refusal_reason(file, reader, check_content=False, spacing_mm=self._spacing_mm):
            raise UnusableVolume(reason)
        return read_scaled(path, reader, spacing_mm=self._spacing_mm)


def _spacing(given: Any) -> float | tuple[float, float, float] | None:
    """Return a spacing as its description has it: JSON knows no tuples."""
    if given is None or isinstance(given, int | float):
        return given
    first, second, third = given
    return float(first), float(second), float(third)
