"""Reads scans as a backbone saw them when it was trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from voxelwave.data.foreground import CroppedAt
from voxelwave.data.listing.scans import Scan
from voxelwave.data.listing.selection import stored_refusal
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.dicom_header import Series
from voxelwave.data.reading.volume import Spacing, three
from voxelwave.data.recognition.recognise import recognise
from voxelwave.data.scaled import Scaled, scale, scale_stored
from voxelwave.data.store import StoredVolume, is_stored
from voxelwave.downstream.description import CROPPED, modality_settings
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.registry import MODALITIES


class ScanReader:
    """Reads files with the spacing, the scaling and the crop that the description of `features` names."""

    def __init__(self, features: FeaturePyramid) -> None:
        description, self._counts = features.description, features.in_channels
        spacing_mm = description.get("preprocessing", {}).get("spacing_mm")
        crop_at = description.get("preprocessing", {}).get(CROPPED)
        # JSON knows no tuples.
        self._spacing_mm: Spacing | None = three(spacing_mm) if isinstance(spacing_mm, list) else spacing_mm
        self._crop_at: CroppedAt | None = crop_at if crop_at in (None, "native") else three(crop_at)
        settings = modality_settings(description)
        # A model of a task knows what it was trained on; a backbone may be tried on anything of as many channels.
        names = ("task" in description and settings) or MODALITIES.names()
        self._readers: dict[str, Modality] = {
            name: MODALITIES.build(name, **settings.get(name, {}))
            for name in names
            if MODALITIES.get(name).channels in self._counts
        }

    def modality(self, name: str) -> Modality:
        """Return what scales a modality; raises InputError for one with another channel count than the backbone has."""
        if (channels := MODALITIES.get(name).channels) not in self._counts:
            raise InputError(
                f"the backbone takes volumes of {' or '.join(map(str, self._counts))} channels, and {name} has "
                f"{channels}: leave such scans out with --modality, or take a backbone that was trained on {name}"
            )
        return self._readers[name]

    def __call__(
        self, path: Path, modality: str = "", *, root: Path | None = None, series: Series | None = None
    ) -> Scaled:
        """Open a scan once, stored or not, and read it whole.

        Args:
            path: the file, or the folder of `series`.
            modality: "" tells it as `voxelwave prepare` does; a stored volume says its own.
            root: the folder that was searched; names up to its own may tell the modality. None asks the nearest folder.

        Raises:
            UnusableVolume: with a short reason, also for a modality that nothing tells or that the model does not take,
                and for a stored volume that was scaled otherwise.
        """
        if is_stored(path):
            stored = StoredVolume(path)
            name = modality or stored.info.modality
            reader = self._reader(name)
            if reason := stored_refusal(stored, name, reader):
                raise UnusableVolume(reason)
            return self._scaled(scale_stored, stored, reader, name)
        scan = Scan(path, root or path.parent, series=series)
        told, read = scan.told(modality), scan.read
        if told.modality:
            read = partial(scan.read, channels=self._reader(told.modality).channels)
        # Where somebody said what it is, and of a series, the name says nothing more.
        told, volume = recognise(told, Path() if series or modality else path, read)
        name = told.known()
        return self._scaled(scale, volume, self._reader(name), name)

    def _scaled(self, how: Callable[..., Scaled], of: Any, reader: Modality, name: str) -> Scaled:
        return how(of, reader, spacing_mm=self._spacing_mm, crop_at=self._crop_at)._replace(modality=name)

    def _reader(self, name: str) -> Modality:
        """Return what scales a modality; raises UnusableVolume where the model does not take it."""
        if name not in self._readers:
            raise UnusableVolume(f"{name}, and the model takes {' and '.join(self._readers)}")
        return self._readers[name]
