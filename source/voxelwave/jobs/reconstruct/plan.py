"""A file that holds several specialists over one base, and the router between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from voxelwave.errors import InputError
from voxelwave.jobs.common.config_file import apply_override, read_config, set_key, validated
from voxelwave.jobs.reconstruct.config import ReconstructionConfig, ReconstructionRun, check_reconstruction_config
from voxelwave.registry import SECTION_NEEDED, shortened

SPECIALISTS, ROUTER = "specialists", "router"
EXAMPLES = {"run": "seed", "data": "acceleration", "training": "clip_norm"}  # of keys of these sections


class Plan(NamedTuple):
    """What a file says: the configuration of each specialist, "" where it has none, and plain values of the router."""

    specialists: dict[str, ReconstructionConfig]
    router: dict[str, Any]


def load_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a YAML file and apply overrides.

    A specialist is keys that differ from the base, such as `data.acceleration: 8`, and its run lies in the folder of
    the base's. Overrides come last, and apply to all specialists unless they name one (`specialists.knee.…`).
    Raises InputError, in one line, for a missing or malformed file, an unknown key, or a value that does not fit.
    """
    base = read_config(path, [one for one in overrides if one.startswith(f"{ROUTER}.")])
    router = base.pop(ROUTER, None) or {}
    specialists = base.pop(SPECIALISTS, {"": {}})
    if not isinstance(router, dict):
        raise InputError(f"{path}: '{ROUTER}': {SECTION_NEEDED}, got {shortened(repr(router))}")
    if not isinstance(specialists, dict) or not specialists:
        raise InputError(f"{path}: '{SPECIALISTS}' holds a name for each, with keys that differ from the base")
    if ROUTER in specialists:
        raise InputError(f"{path}: a specialist cannot be called '{ROUTER}', which the network beside them is called")
    own: dict[str, list[str]] = {str(name): [] for name in specialists}
    for override in overrides:
        if override.startswith(f"{ROUTER}."):
            continue
        _, name, key = override.split(".", 2) if override.count(".") > 1 else ("", "", override)
        if not override.startswith(f"{SPECIALISTS}."):
            for of in own.values():
                of.append(override)
        elif name in own:
            own[name].append(key)
        else:
            raise InputError(f"--set {override}: there is no specialist '{name}'; known: {', '.join(own) or 'none'}")
    configs = {}
    for name, differing in specialists.items():
        origin = f"{path}, specialist '{name}'" if name else str(path)
        if not isinstance(differing, Mapping):
            raise InputError(f"{origin}: holds keys such as 'data.acceleration', got {type(differing).__name__}")
        raw = deepcopy(base)
        if sections := [key for key in EXAMPLES if key in differing]:
            raise InputError(
                f"{origin}: '{sections[0]}' would take the place of all that the base says there: name the keys that "
                f"differ, such as '{sections[0]}.{EXAMPLES[sections[0]]}'"
            )
        for key, value in differing.items():
            set_key(raw, str(key), deepcopy(value))
        for override in own[str(name)]:
            apply_override(raw, override)
        config = check_reconstruction_config(raw, origin)
        if name:
            run = config.run.model_dump() | {"out_dir": config.run_folder(), "name": str(name)}
            config.run = validated(ReconstructionRun, run, origin)
        configs[str(name)] = config
    return Plan(configs, router)
