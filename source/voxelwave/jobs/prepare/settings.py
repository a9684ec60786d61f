"""The settings of a prepared data set: from the command line, checked, and the same for all of its volumes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxelwave import __version__
from voxelwave.data.listing.manifest import DATASET
from voxelwave.data.modalities import Modality
from voxelwave.data.reading.volume import Spacing
from voxelwave.errors import InputError
from voxelwave.jobs.common.config_file import apply_override
from voxelwave.jobs.prepare.preparation import Preparation
from voxelwave.ops.files import write_text
from voxelwave.ops.texts import read_json, to_json
from voxelwave.registry import MODALITIES

FORMAT_VERSION = 1
FRAMES = ("refuse", "first", "all")


def preparation(
    *,
    modality: str | None = None,
    spacing: str = "1.0",
    crop: bool = True,
    four_d: str = "refuse",
    hu_offset: float = 0.0,
    overrides: Sequence[str] = (),
    subject: str | None = None,
) -> Preparation:
    """Make settings of what the command line gives; raises InputError for what does not fit."""
    settings: dict[str, Any] = {}
    for override in overrides:
        apply_override(settings, override)
    for name, value in settings.items():
        if not isinstance(value, dict):
            raise InputError(f"--set takes MODALITY.SETTING=VALUE such as mri.percentiles=[1,99], got '{name}={value}'")
    try:
        pattern = re.compile(subject) if subject else None
    except re.error as error:
        raise InputError(f"--subject '{subject}' is not a regular expression: {error}") from None
    return Preparation(
        modality=modality,
        spacing_mm=_spacing(spacing),
        crop=crop,
        hu_offset=hu_offset,
        frames=four_d,
        modalities=settings,
        subject=pattern,
    )


def check(how: Preparation, *, holdout: float | None) -> dict[str, Modality]:
    """Return the modalities as set; raises InputError for what does not fit."""
    if how.modality is not None:
        MODALITIES.get(how.modality)
    for name in how.modalities:
        MODALITIES.get(name)
    if how.frames not in FRAMES:
        raise InputError(f"--four-d is one of {', '.join(FRAMES)}, got '{how.frames}'")
    if holdout is not None and not 0 <= holdout < 1:
        raise InputError(f"--holdout is a share of at least 0 and below 1, got {holdout}")
    return how.readers()


def check_data_set(out: Path, how: Preparation) -> None:
    """Raise InputError where `out` was made with other settings, or is something else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to write the data set to")
    record = out / DATASET
    if record.exists():
        _check_same(record, _settings(how))
    # Hidden files are what a call leaves that was killed at its start.
    elif out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out} is not empty, and no prepared data set: give another folder")


def record_settings(out: Path, how: Preparation, holdout: float | None) -> float:
    """Write the settings of a data set, and return its share of test subjects; None keeps that of before."""
    record = out / DATASET
    before = _check_same(record, _settings(how)) if record.exists() else None
    if before is not None and holdout in (None, before):
        return before
    described = {
        "format_version": FORMAT_VERSION,
        "voxelwave": __version__,
        "settings": _settings(how),
        "holdout": holdout or 0.0,
    }
    write_text(record, to_json(described))
    return holdout or 0.0


def _check_same(record: Path, settings: dict[str, Any]) -> float:
    """Return the share of test subjects of a data set; raises InputError where it was made with other settings."""
    try:
        made = read_json(record)
        version, before, holdout = made["format_version"], dict(made["settings"]), float(made["holdout"])
        if not 0 <= holdout < 1:
            raise ValueError(f"holdout is {holdout}")
    except (ValueError, KeyError, TypeError, OverflowError):
        raise InputError(f"{record} is damaged: prepare into another folder") from None
    if version != FORMAT_VERSION:
        raise InputError(f"{record.parent} has format {version}, this voxelwave writes {FORMAT_VERSION}")
    for key, value in settings.items():
        if before.get(key) != value:
            raise InputError(
                f"{record.parent} was prepared with {key} {before.get(key)} and not {value}: give another folder"
            )
    return holdout


def _settings(how: Preparation) -> dict[str, Any]:
    """Return what all volumes of a data set share, as JSON gives it back."""
    modalities = {name: MODALITIES.settings(name, how.modalities.get(name, {})) for name in MODALITIES.names()}
    settings = {
        "spacing_mm": how.spacing_mm,
        "crop": how.crop,
        "hu_offset": how.hu_offset,
        "four_d": how.frames,
        "modalities": modalities,
        "subject": how.subject.pattern if how.subject else None,
    }
    return dict(json.loads(json.dumps(settings)))


def _spacing(text: str) -> Spacing | None:
    if text == "native":
        return None
    try:
        sides = [float(side) for side in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 3) or not all(0 < side < 100 for side in sides):
        raise InputError(f"--spacing is a number of mm, three of them (1,1,2), or native, got '{text}'")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1], sides[2])
