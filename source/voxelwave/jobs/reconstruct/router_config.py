"""The configuration of a router: YAML, checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from voxelwave.jobs.common.config import JobConfig, RunConfig, RunName, Section, complete
from voxelwave.jobs.common.config_file import naming, read_config, validated
from voxelwave.jobs.reconstruct.config import SamplingConfig
from voxelwave.registry import SAMPLINGS

AnatomyName = Annotated[str, Field(pattern=r"^\w[\w -]*$")]
SMALLEST = 16  # pixels, of which the network pools 2 × 2 three times


def _equispaced() -> list[SamplingConfig]:
    common = {"name": "equispaced", "center_fraction": 0.08, "offset": "origin"}
    return [SamplingConfig.model_validate({**common, "acceleration": rate}) for rate in (4, 8)]


class RouterRun(RunConfig):
    """As of pretraining."""

    name: RunName = "router"


class RouterData(Section):
    """Volumes of each anatomy, and what the router sees of them.

    Attributes:
        anatomies: by name a file, a folder or a glob of k-space, or a list of such.
        image_size: pixels along each side that an image is brought to, whatever its own.
        max_slices: of a volume, at even distances.
        samplings: of which a volume without a mask of its own has one, so that the router knows undersampled images.
        validation_share: of the volumes of each anatomy; 0 keeps none.
        flip: turns images over along either side at random.
        skip_unusable: leaves files out that cannot be opened, and says which.
    """

    anatomies: dict[AnatomyName, str | list[str]]
    image_size: Annotated[int, Field(ge=SMALLEST, le=1024)] = 128
    max_slices: PositiveInt = 8
    samplings: Annotated[list[SamplingConfig], Field(min_length=1, default_factory=_equispaced)]
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    flip: bool = False
    skip_unusable: bool = False

    @field_validator("anatomies")
    @classmethod
    def _are_several(cls, anatomies: dict[str, Any]) -> dict[str, Any]:
        if len(anatomies) < 2:
            raise ValueError("a router tells two anatomies or more apart")
        return anatomies


class RouterTraining(Section):
    """Optimisation; a batch is so many volumes."""

    epochs: PositiveInt = 5
    batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    device: str = "auto"
    deterministic: bool = False


class RouterConfig(JobConfig):
    """A run that trains a router."""

    run: RouterRun = RouterRun()
    data: RouterData
    training: RouterTraining = RouterTraining()


def load_router_config(path: Path, overrides: Sequence[str] = ()) -> RouterConfig:
    """Read a YAML file and apply overrides.

    Raises InputError, in one line, for a missing or malformed file, an unknown key, or a value that does not fit.
    """
    return check_router_config(read_config(path, overrides), str(path))


def check_router_config(raw: dict[str, Any], origin: str = "config") -> RouterConfig:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    config = validated(RouterConfig, raw, origin)
    with naming(origin):
        data = config.data
        data.samplings = [complete(SAMPLINGS, one, f"data.samplings.{n}") for n, one in enumerate(data.samplings)]
        for one in data.samplings:
            SAMPLINGS.build(one.name, **one.settings)
    return config
