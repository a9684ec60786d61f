"""The configuration of a router: YAML, checked."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from voxelwave.errors import InputError
from voxelwave.jobs.common.config import JobConfig, RunConfig, RunName, Section, complete
from voxelwave.jobs.common.config_file import naming, validated
from voxelwave.jobs.reconstruct.config import ROUTER, Plan, SamplingConfig
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
        max_slices: of a volume, at even distances; to read them takes most of the time.
        samplings: of which a volume without a mask of its own has one, so that the router knows undersampled images.
        validation_share: of the volumes of each anatomy; 0 keeps none.
        flip: turns images over along either side at random.
        skip_unusable: leaves files out that cannot be opened, and says which.
    """

    anatomies: dict[AnatomyName, str | list[str]]
    image_size: Annotated[int, Field(ge=SMALLEST, le=1024)] = 128
    max_slices: PositiveInt = 4
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


def router_config_of(plan: Plan, origin: str) -> RouterConfig:
    """Return the configuration of the router between the specialists of `plan`, whose files it is trained on.

    Its run lies beside theirs. Raises InputError where they are of one anatomy, and for what does not fit.
    """
    anatomies: dict[str, list[str]] = {}
    for config in plan.specialists.values():
        of = anatomies.setdefault(config.data.anatomy or "", [])
        of += [config.data.files] if config.data.files not in of else []
    if len({*anatomies} - {""}) < 2 or "" in anatomies:
        raise InputError(f"{origin}: a router is for specialists of several anatomies, each with its data.anatomy")
    first = next(iter(plan.specialists.values()))
    raw = dict(plan.router)
    raw["run"] = first.run.model_dump() | dict(raw.get("run") or {}) | {"name": ROUTER}
    raw["data"] = {"skip_unusable": first.data.skip_unusable, **dict(raw.get("data") or {}), "anatomies": anatomies}
    device = {"device": first.training.device, "deterministic": first.training.deterministic}
    raw["training"] = device | dict(raw.get("training") or {})
    return check_router_config(raw, f"{origin}, {ROUTER}")


def check_router_config(raw: dict[str, Any], origin: str = "config") -> RouterConfig:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    config = validated(RouterConfig, raw, origin)
    with naming(origin):
        data = config.data
        data.samplings = [complete(SAMPLINGS, one, f"data.samplings.{n}") for n, one in enumerate(data.samplings)]
        for one in data.samplings:
            SAMPLINGS.build(one.name, **one.settings)
    return config
