"""The configuration of a router: YAML, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from voxelwave.errors import InputError
from voxelwave.jobs.common.config import JobConfig, RunConfig, RunName, Section, complete
from voxelwave.jobs.common.config_file import naming, validated
from voxelwave.jobs.reconstruct.config import Place, SamplingConfig
from voxelwave.jobs.reconstruct.plan import ROUTER, Plan
from voxelwave.registry import SAMPLINGS, SECTION_NEEDED

SMALLEST = 16  # pixels, of which the network pools 2 × 2 three times


def _equispaced() -> list[SamplingConfig]:
    common = {"name": "equispaced", "center_fraction": 0.08, "offset": "origin"}
    return [SamplingConfig.model_validate({**common, "acceleration": rate}) for rate in (4, 8)]


def _each_a_list(anatomies: Any) -> Any:
    if not isinstance(anatomies, Mapping):
        return anatomies
    places = {name: [given] if isinstance(given, str) else given for name, given in anatomies.items()}
    if empty := [name for name, given in places.items() if given == []]:
        raise ValueError(f"of '{empty[0]}' no files are named")
    return places


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

    anatomies: Annotated[dict[RunName, list[Place]], BeforeValidator(_each_a_list)]
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
    """Optimisation; a batch is so many volumes.

    `epochs` of null are 5, or as many as 600 steps take: few volumes need to be seen more often.
    """

    epochs: PositiveInt | None = None
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
    defaults = {
        "run": first.run.model_dump(exclude={"name"}),
        "data": {"skip_unusable": first.data.skip_unusable},
        "training": {"device": first.training.device, "deterministic": first.training.deterministic},
    }
    # What follows from the specialists would be passed over in silence.
    following: dict[str, dict[str, Any]] = {"run": {"name": ROUTER}, "data": {"anatomies": anatomies}, "training": {}}
    for section, values in defaults.items():
        given = raw.get(section)
        if not isinstance(given, Mapping | None):
            raise InputError(f"{origin}: key '{ROUTER}.{section}': {SECTION_NEEDED}, got {given!r}")
        if said := sorted({*following[section]} & {*(given or {})}):
            raise InputError(f"{origin}: key '{ROUTER}.{section}.{said[0]}' follows from the specialists: leave it out")
        raw[section] = values | dict(given or {}) | following[section]
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
