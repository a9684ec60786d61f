"""From a scan to what the store keeps of it: mended, towards RAS, resampled, cropped to its foreground."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int16, Shaped
from numpy import ndarray

from voxelwave.data.foreground import STRIDE, to_foreground
from voxelwave.data.listing.scans import Scan
from voxelwave.data.modalities import Modality
from voxelwave.data.modalities.ct import in_hounsfield_units
from voxelwave.data.reading.volume import (
    AT_SPACING,
    SMALLEST_SIDE,
    Spacing,
    Volume,
    VolumeInfo,
    resample,
    three,
    too_many_voxels,
)
from voxelwave.data.recognition.recognise import recognise
from voxelwave.data.recognition.rules import Told
from voxelwave.data.scaled import mended, without_padding
from voxelwave.data.store import StoredInfo
from voxelwave.errors import UnusableVolume
from voxelwave.ops.seeding import numpy_generator
from voxelwave.registry import MODALITIES

PLACES = 1024
LONGEST_SIDE = np.iinfo(np.int16).max - 1  # the places are int16


@dataclass(frozen=True)
class Preparation:
    """How scans are prepared.

    Attributes:
        modality: of every scan; None tells the modality of each by rule.
        spacing_mm: to resample to; None keeps the spacing of every scan.
        crop: whether scans are cropped to their foreground, with a margin of 5 mm.
        hu_offset: added to CT of one channel that is not in Hounsfield units, such as -1024 for scans that are stored
            with an offset.
        frames: what is taken of a file of several volumes: "refuse", "first" or "all".
        modalities: settings of each modality, by its name.
        subject: its first group is the subject, where it is found in a path.
    """

    modality: str | None = None
    spacing_mm: Spacing | None = 1.0
    crop: bool = True
    hu_offset: float = 0.0
    frames: str = "refuse"
    modalities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    subject: re.Pattern[str] | None = None

    def readers(self) -> dict[str, Modality]:
        """Return the modalities as set, by name; raises InputError for a setting that does not fit."""
        return {name: MODALITIES.build(name, **self.modalities.get(name, {})) for name in MODALITIES.names()}


class Prepared(NamedTuple):
    """A volume ready to be stored, and what its manifest says of it."""

    volume: Shaped[ndarray, "..."]
    info: StoredInfo
    foreground: Int16[ndarray, "place 3"]
    facts: dict[str, Any]


def prepare(scan: Scan, how: Preparation, readers: Mapping[str, Modality], facts: dict[str, Any]) -> Prepared:
    """Read a scan and make of it what is stored; `facts` collects the columns of its row, also where it is refused.

    Raises NotAnImage for a label map, and UnusableVolume, with the reason, for whatever else cannot be used.
    """
    # 1. What header and name tell.
    header = scan.read_header()
    facts |= {"shape": header.shape, "spacing_mm": header.spacing_mm, "orientation": header.orientation}
    facts["note"] = header.note
    told = scan.told(how.modality)
    facts |= _columns(told)
    channels = channels_of(told, readers)

    # 2. The values, as they are.
    told, volume = recognise(
        told,
        Path() if scan.series else scan.path,  # the folder of a series may be named after what is to be seen in it
        partial(scan.read, channels=channels),
        problem=header.problem(channels, several=scan.frame is not None) or _too_large(header, how.spacing_mm),
    )
    facts |= _columns(told)
    name = told.known()
    facts["hash"] = content_hash(volume)

    # 3. Mended, resampled, measured.
    modality = readers[name]
    array, facts["nonfinite"] = mended(volume.array, modality)
    if name == "ct" and array.ndim == 3:
        if how.hu_offset and modality.require_hu and in_hounsfield_units(array):  # type: ignore[attr-defined]
            facts["note"] = "; ".join(filter(None, [facts["note"], "in Hounsfield units already: no offset was added"]))
        else:
            array = array + np.float32(how.hu_offset)
        array = without_padding(array, modality)
    modality.bounds(array)  # refuses before the work of resampling
    resampled = resample(Volume(array, volume.affine), how.spacing_mm)
    bounds = modality.bounds(resampled.array)

    # 4. Cropped to the foreground.
    cropped = to_foreground(resampled, modality, bounds) if how.crop else resampled
    if min(cropped.array.shape[:3]) < SMALLEST_SIDE:
        raise UnusableVolume(f"too small at the spacing asked for: shape {cropped.array.shape}")
    facts |= _statistics(cropped.array, modality.foreground(cropped.array[::STRIDE, ::STRIDE, ::STRIDE], bounds))

    # 5. As it is stored.
    packed = modality.pack(cropped.array, bounds)
    info = StoredInfo(
        modality=name,
        affine=cropped.affine.tolist(),
        bounds=packed.bounds,
        settings=modality.baked(),
        source_shape=volume.array.shape[:3],
        source_affine=volume.affine.tolist(),
        cropped=how.crop,
    )
    facts |= {"stored_shape": packed.array.shape, "stored_spacing_mm": cropped.spacing_mm}
    places = foreground_places(modality.foreground(cropped.array, bounds), facts["hash"])
    return Prepared(packed.array, info, places, facts)


def channels_of(told: Told, readers: Mapping[str, Modality]) -> int:
    """Return how many channels a file may have: those of its modality, or where that is unknown three, as CT has."""
    return readers[told.modality].channels if told.modality else 3


def content_hash(volume: Volume) -> str:
    """Return 32 hex digits that follow from the values and the directions of the axes, in whatever order of storage."""
    digest = hashlib.blake2b(digest_size=16)
    # Adding 0 makes one zero of two.
    digest.update(repr((volume.array.shape, (np.round(volume.affine[:3, :3], 3) + 0.0).tolist())).encode())
    digest.update(np.ascontiguousarray(volume.array).data)
    return digest.hexdigest()


def foreground_places(shown: Bool[ndarray, "..."], key: str) -> Int16[ndarray, "place 3"]:
    """Draw voxels of the foreground, the same for the same `key`, to centre crops on."""
    found = np.flatnonzero(shown)
    if found.size > PLACES:
        found = numpy_generator("foreground", key).choice(found, PLACES, replace=False, shuffle=False)
    places: Int16[ndarray, "place 3"] = np.stack(np.unravel_index(found, shown.shape), axis=-1).astype(np.int16)
    return places


def _too_large(header: VolumeInfo, spacing_mm: Spacing | None) -> str | None:
    asked = three(spacing_mm or header.spacing_mm)
    longest = float((np.array(header.grid) * header.spacing_mm / asked).max())
    if (problem := too_many_voxels(header.grid, header.spacing_mm, asked)) or longest <= LONGEST_SIDE:
        return problem
    return f"it would have {longest:.0f} voxels along one axis {AT_SPACING}"


def _columns(told: Told) -> dict[str, str]:
    return (
        {"modality": told.modality, "told_by": told.rule + ("" if told.sure else ", unsure")} if told.modality else {}
    )


def _statistics(array: Float32[ndarray, "..."], shown: Bool[ndarray, "..."]) -> dict[str, float]:
    values = array[::STRIDE, ::STRIDE, ::STRIDE][shown].astype(np.float64)
    if not values.size:
        values = array.reshape(-1).astype(np.float64)
    return {
        "minimum": float(array.min()),
        "maximum": float(array.max()),
        "mean": float(values.mean()),
        "std": float(values.std()),
    }
