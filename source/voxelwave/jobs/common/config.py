"""What the configurations of all jobs are made of: sections, components by name, and the place of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, field_validator

from voxelwave.contracts import Grid
from voxelwave.data.batches.watched import WORKER_TIMEOUT_S
from voxelwave.data.listing.discovery import home_expanded
from voxelwave.data.reading.volume import MOST_VOXELS
from voxelwave.engine.signals import STOPPED
from voxelwave.errors import InputError
from voxelwave.ops.workers import MOST_WORKERS
from voxelwave.registry import MODALITIES, Registry, Settings

Share = Annotated[float, Field(gt=0, le=1)]
NumWorkers = Annotated[int, Field(ge=0, le=MOST_WORKERS)]  # processes that read


def is_run_name(name: str) -> bool:
    """Tell whether a run may have this name."""
    return re.fullmatch(r"\w[\w. -]*", name) is not None


def _is_name(name: str) -> str:
    if not is_run_name(name):
        raise ValueError("a name has letters, digits and _, after the first also dots, dashes and spaces, and no slash")
    return name


# The name of a folder, and of no other folder by `..` or a slash.
RunName = Annotated[str, AfterValidator(_is_name)]


class Section(Settings):
    """Keys that are not declared here are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Component(Settings):
    """A registered component: its name, and the settings that its constructor takes."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """What goes to the constructor."""
        return dict(self.model_extra or {})


class RunConfig(Section):
    """Where the run is written (`<out_dir>/<name>`) and what all its random numbers follow from.

    `license` is that of the weights, and goes into `backbone.json`. `exit_code_when_stopped` is that of a run which a
    signal ended, and which goes on with `--resume`: some batch systems start anew what ends with a code of theirs. A
    data worker that brings no batch for `timeout_s` counts as hung, and a process that does not answer another one for
    twice as long.
    """

    name: RunName = "pretrain"
    out_dir: Path = Path("checkpoints")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    tensorboard: bool = True
    license: str | None = None
    exit_code_when_stopped: Annotated[int, Field(ge=3, le=255)] = STOPPED
    timeout_s: PositiveFloat = WORKER_TIMEOUT_S

    # What may differ between a run and its continuation.
    FREE_TO_CHANGE: ClassVar = ("out_dir", "tensorboard", "exit_code_when_stopped", "timeout_s")

    @field_validator("out_dir")
    @classmethod
    def _is_a_path(cls, path: Path) -> Path:
        if "\0" in str(path):
            raise ValueError("a path has no character of value 0")
        home_expanded(str(path))
        return path


class JobConfig(Section):
    """The configuration of a job that leaves a run folder."""

    run: RunConfig

    def run_folder(self) -> Path:
        """Where everything of this run is written."""
        return self.run.out_dir.expanduser() / self.run.name


class BackboneConfig(Component):
    """The backbone by name with its settings."""

    name: str = "waveformer"


ComponentT = TypeVar("ComponentT", bound=Component)


def complete(registry: Registry, component: ComponentT, section: str) -> ComponentT:
    """Fill in the defaults of a component's settings."""
    settings = registry.settings(component.name, component.settings, section)
    return type(component)(name=component.name, **settings)


def check_modalities(sections: Mapping[str, Iterable[str]]) -> None:
    """Raise InputError where one of `sections` names a modality that is not known."""
    known = MODALITIES.names()
    for section, names in sections.items():
        if unknown := sorted(set(names) - set(known)):
            raise InputError(f"unknown modality '{unknown[0]}' in '{section}'; known: {', '.join(known)}")


def check_crop(crop: Grid, patch_size: int) -> None:
    """Raise InputError for a crop that is not cut into whole patches, or has more voxels than any volume."""
    if math.prod(crop) > MOST_VOXELS:
        raise InputError(
            f"key 'data.crop_size': {list(crop)} has more than {MOST_VOXELS:.0e} voxels: take a smaller one"
        )
    if any(side % patch_size for side in crop):
        raise InputError(
            f"key 'data.crop_size': {list(crop)} is not divisible by the backbone's patch_size {patch_size}: take "
            f"multiples of {patch_size}"
        )
