"""The configuration of a phantom run: YAML, checked; the defaults are the reference run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from voxelwave.engine.runtime import Precision
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import (
    Component,
    JobConfig,
    NumWorkers,
    RunConfig,
    RunName,
    Section,
    complete,
)
from voxelwave.jobs.common.config_file import apply_override, naming, read_config, set_key, validated
from voxelwave.ops.seeding import torch_generator
from voxelwave.registry import EMBEDDINGS, METRIC_LOSSES, SAMPLINGS

MOST_PHANTOMS, MOST_COILS, LARGEST_SIDE = 10_000_000, 256, 2048  # beyond that a number is a slip, and memory ends first


class PhantomRun(RunConfig):
    """As of pretraining. With a `prefix` history, curves and best weights are also there under names that begin so."""

    name: RunName = "phantom"
    prefix: Annotated[str, Field(pattern=r"^[\w.-]*$", max_length=100)] = ""


class SamplingConfig(Component):
    """Which k-space is kept, by name with its settings."""

    name: str = "equispaced"


class NormalizeConfig(Section):
    """The settings of `Normalize`; values beyond `clip` are clipped."""

    eps: NonNegativeFloat = 1e-6
    clip: PositiveFloat | None = None


class ViewConfig(Section):
    """One of the two ways in which a phantom is seen; it is turned and shifted in training alone.

    `normalize` is `{eps, clip}` of the last step; null leaves its defaults.
    """

    sampling: SamplingConfig
    max_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    max_shift: NonNegativeFloat = 2.0
    normalize: NormalizeConfig | None = None


def _view(acceleration: float, center_fraction: float) -> ViewConfig:
    settings = {"acceleration": acceleration, "center_fraction": center_fraction}
    return ViewConfig(sampling=SamplingConfig(name="equispaced", **settings))


VIEWS = {"first": _view(4.0, 0.08), "second": _view(8.0, 0.04)}


class PhantomData(Section):
    """How many phantoms, and how each is seen. Those of validation are never trained on.

    `rescan` gives the second view coils, phase and noise of its own. Without it, as first described, the strengths of
    the coils alone tell most phantoms apart, and none of the anatomy has to be learned. The model sees
    `num_virtual_coils` combinations of the coils, those of the most energy in each view; null: the coils themselves.
    """

    train_length: Annotated[int, Field(ge=2, le=MOST_PHANTOMS)] = 800
    val_length: Annotated[int, Field(ge=2, le=MOST_PHANTOMS)] = 200
    image_size: Annotated[int, Field(ge=16, le=LARGEST_SIDE)] = 128
    num_coils: Annotated[int, Field(ge=1, le=MOST_COILS)] = 8
    num_virtual_coils: PositiveInt | None = None
    noise: Annotated[float, Field(ge=0, le=100)] = 0.02
    rescan: bool = True
    first: ViewConfig = VIEWS["first"]
    second: ViewConfig = VIEWS["second"]
    num_workers: NumWorkers = 1

    @field_validator("first", "second", mode="before")
    @classmethod
    def _over_the_default(cls, given: Any, info: Any) -> Any:
        """Keep what is not said of a view, and of a sampling unless it is another one."""
        if not isinstance(given, dict):
            return given
        whole = VIEWS[info.field_name].model_dump()
        sampling = given.get("sampling", {})
        if isinstance(sampling, dict) and sampling.get("name", whole["sampling"]["name"]) == whole["sampling"]["name"]:
            sampling = whole["sampling"] | sampling
        return whole | given | {"sampling": sampling}


class EmbeddingConfig(Component):
    """The embedding model by name with its settings."""

    name: str = "mri_embedding"


class MetricLossConfig(Component):
    """The metric loss by name with its settings."""

    name: str = "ntxent"


class PlateauConfig(Section):
    """The rate falls by `factor` where the validation loss has not fallen for more than `patience` epochs."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: NonNegativeInt = 2
    floor: NonNegativeFloat = 1e-6


class PhantomTraining(Section):
    """Optimisation. `patience` ends a run after so many epochs without a lower validation loss; null never does."""

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 1e-4
    plateau: PlateauConfig = PlateauConfig()
    patience: PositiveInt | None = 5
    clip_norm: PositiveFloat = 1.0
    precision: Precision = "fp32"
    device: str = "auto"
    deterministic: bool = False


class PhantomConfig(JobConfig):
    """A phantom run."""

    run: PhantomRun = PhantomRun()
    data: PhantomData = Field(default_factory=PhantomData)
    model: EmbeddingConfig = EmbeddingConfig()
    loss: MetricLossConfig = MetricLossConfig()
    training: PhantomTraining = PhantomTraining()


# What is not a default of the sections above: the reference run, and the run as it was first described.
REFERENCE: dict[str, Any] = {}
DESCRIBED: dict[str, Any] = {
    "run": {"name": "phantom_described"},
    "data": {"rescan": False},
    "loss": {"name": "triplet"},
    "training": {"learning_rate": 3e-4},
}


def load_phantom_config(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    base: Mapping[str, Any] = REFERENCE,
) -> PhantomConfig:
    """Read a YAML file (none: `base`), apply overrides and `flags` (values by "section.key"), and check it.

    Raises InputError, in one line, for a missing or malformed file, an unknown key, a value that does not fit, or a
    flag that has no effect under the chosen loss.
    """
    raw = deepcopy(dict(base)) if path is None else read_config(Path(path))
    for override in overrides:
        apply_override(raw, override)
    for key, value in (flags or {}).items():
        set_key(raw, key, value)
    config = check_phantom_config(raw, "options" if path is None else str(path))
    if "loss.margin" in (flags or {}) and not METRIC_LOSSES.get(config.loss.name).margin_acts:
        raise InputError(
            f"'loss.margin' has no effect under the loss '{config.loss.name}': take --set loss.name=triplet, or, where "
            f"it is to say which triplets the logs call violations, --set loss.margin={config.loss.settings['margin']}"
        )
    return config


def check_phantom_config(raw: dict[str, Any], origin: str = "config") -> PhantomConfig:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    config = validated(PhantomConfig, raw, origin)
    with naming(origin):
        for name in ("first", "second"):
            view = getattr(config.data, name)
            view.sampling = complete(SAMPLINGS, view.sampling, f"data.{name}.sampling")
            _check_sampling(view.sampling, config.data.image_size, f"data.{name}.sampling")
        config.model = complete(EMBEDDINGS, config.model, "model")
        # Encoders that are made for one size are made for this one.
        if config.model.settings.get("image_size", 0) is None:
            settings = config.model.settings | {"image_size": config.data.image_size}
            config.model = EmbeddingConfig(name=config.model.name, **settings)
        config.loss = complete(METRIC_LOSSES, config.loss, "loss")
        virtual, coils = config.data.num_virtual_coils, config.data.num_coils
        if virtual is not None and virtual > coils:
            raise InputError(f"key 'data.num_virtual_coils': {virtual} is above data.num_coils={coils}: lower it")
        if config.training.batch_size > config.data.train_length:
            raise InputError(
                f"key 'training.batch_size': {config.training.batch_size} is above data.train_length="
                f"{config.data.train_length}, and the last, smaller batch of an epoch is left out: lower it"
            )
    return config


def _check_sampling(sampling: SamplingConfig, size: int, key: str) -> None:
    """Raise InputError where images of this size cannot be sampled so."""
    built = SAMPLINGS.build(sampling.name, **sampling.settings)
    try:
        built((size, size), torch_generator("check"))
    except ValueError as error:
        raise InputError(f"key '{key}': {error}") from None
