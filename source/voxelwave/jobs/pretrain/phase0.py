"""The data of phase 0 where nobody names any: the described tree where it is in place, else generated heads."""

from __future__ import annotations

import json
from pathlib import Path

from voxelwave.errors import InputError
from voxelwave.jobs.common.made_folder import COMPLETE, RECORD
from voxelwave.ops.texts import read_json

OPENMIND = Path("data/processed/openmind/OpenMind_processed")
MRI = tuple(OPENMIND / name for name in ("MRI_T1", "MRI_T2", "MRA"))
CT = Path("data/processed/NIH_deeplesion/CT")
HEADS = Path("data/demo")
NUM_HEADS = 50  # of each modality


def described_sources() -> list[dict[str, str]]:
    """Return the sources of the described tree in the working folder; none where it lacks MRI or CT."""
    there = [folder for folder in MRI if folder.is_dir()]
    if not (there and CT.is_dir()):
        return []
    return [*({"path": str(folder), "modality": "mri"} for folder in there), {"path": str(CT), "modality": "ct"}]


def as_override(sources: list[dict[str, str]]) -> str:
    """Return what `--set` takes for these sources."""
    return f"data.sources={json.dumps(sources)}"


def heads_are_missing() -> bool:
    """Tell whether the generated heads have to be made, or made to the end; what lies in their place is left alone."""
    if (HEADS / RECORD).exists():
        try:
            return not read_json(HEADS / RECORD).get(COMPLETE)
        except (ValueError, AttributeError):
            raise InputError(f"{HEADS / RECORD} cannot be read: delete {HEADS}") from None
    return not all((HEADS / name).is_dir() for name in ("mri", "ct"))
