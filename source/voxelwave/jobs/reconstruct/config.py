"""The configuration of reconstruction: YAML, checked; one file may hold several specialists over one base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from voxelwave.data.kspace.mraugment import KINDS
from voxelwave.data.kspace.slices import DataRange
from voxelwave.engine.runtime import Precision
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import Component, JobConfig, RunConfig, RunName, Section, complete
from voxelwave.jobs.common.config_file import apply_override, naming, read_config, set_key, validated
from voxelwave.jobs.reconstruct.synthesis.config import SynthesisConfig
from voxelwave.losses.image_mask import Anatomy
from voxelwave.registry import RECONSTRUCTION_OBJECTIVES, RECONSTRUCTIONS, SAMPLINGS

SPECIALISTS, ROUTER = "specialists", "router"
Compression = Literal["svd", "geometric"]
# The origin is one of the lines that are sampled, and they are the same for all slices.
FIXED: dict[str, Any] = {"name": "equispaced", "offset": "origin"}


class ReconstructionRun(RunConfig):
    """As of pretraining."""

    name: RunName = "reconstruction"


class SamplingConfig(Component):
    """Which lines are sampled, by name with its settings; `acceleration` and `center_fraction` are those of `data`."""

    name: str = "equispaced"


class CoilsConfig(Section):
    """What is done to the coils: noise made white by the file's noise scan, and fewer virtual ones."""

    prewhiten: bool = False
    num_virtual: PositiveInt | None = None
    compression: Compression = "svd"


class ReconstructionData(Section):
    """Files of k-space, and what is reconstructed of them.

    Attributes:
        files: a file, a folder or a glob of what is trained on.
        validation: another such place, or the share of the files that is kept for it; 0 keeps none.
        anatomy: whose mask the loss and the score are taken in; null takes all of the image.
        acceleration, center_fraction: of all samplings that do not say their own.
        readout_rows: the middle of the image along the read-out that is reconstructed; null takes all of it.
        data_range: of which images the largest value scales the similarity.
        skip_unusable: leaves files out that cannot be used, and counts them.
        synthesize, synthesize_validation: how `files` and `validation` are made where they are missing.
    """

    files: str = "data/reconstruction"
    validation: str | Annotated[float, Field(ge=0, lt=1)] = 0.0
    anatomy: Anatomy | None = None
    acceleration: Annotated[float, Field(ge=1)] = 4.0
    center_fraction: Annotated[float, Field(gt=0, le=1)] = 0.08
    readout_rows: PositiveInt | None = None
    data_range: DataRange = "volume"
    coils: CoilsConfig = CoilsConfig()
    skip_unusable: bool = False
    num_workers: NonNegativeInt = 1
    synthesize: SynthesisConfig | None = None
    synthesize_validation: SynthesisConfig | None = None


class ReconstructionModel(Component):
    """The network by name with its settings."""

    name: str = "promptmr_plus"


class ReconstructionObjective(Component):
    """What is learned, by name with its settings."""

    name: str = "supervised"


class ChanceConfig(Section):
    """How likely a move is at the end of a block, and how soon it is nearly so."""

    p_max: Annotated[float, Field(ge=0, le=1)] = 0.5
    decay: PositiveFloat = 10.0


class AugmentConfig(Section):
    """MRAugment: which moves take place, and how far they go; see `data.kspace.mraugment`."""

    moves: dict[str, ChanceConfig]
    max_translation: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 180.0
    max_shear_degrees: Annotated[float, Field(ge=0, lt=90)] = 5.0
    max_scale: Annotated[float, Field(ge=0, lt=1)] = 0.1

    @field_validator("moves")
    @classmethod
    def _are_known(cls, moves: dict[str, ChanceConfig]) -> dict[str, ChanceConfig]:
        if unknown := sorted({*moves} - {*KINDS}):
            raise ValueError(f"unknown move '{unknown[0]}'; known: {', '.join(KINDS)}")
        return moves


class BlockConfig(Section):
    """A stretch of epochs that begins with the weights of the one before, and with a new optimiser.

    Attributes:
        zero_at_epoch: at which epoch, counted from the start of the training, the cosine of the rate would be at 0;
            null takes the end of the block.
        augment: null for none.
        samplings: of which each slice draws one; none of them takes the mask of the file.
    """

    epochs: PositiveInt
    learning_rate: PositiveFloat = 3e-4
    warmup_epochs: NonNegativeFloat = 0
    zero_at_epoch: PositiveInt | None = None
    augment: AugmentConfig | None = None
    samplings: tuple[SamplingConfig, ...] = (SamplingConfig(**FIXED),)


class ReconstructionTraining(Section):
    """Optimisation. A micro-batch is one slice with its neighbours; `accumulate` of them make a step.

    `offload_optimizer` keeps the optimiser's moments in the CPU's memory, as ZeRO's stage 1 with offload does.
    """

    objective: ReconstructionObjective = ReconstructionObjective()
    accumulate: PositiveInt = 2
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat = 0.01
    checkpoint_every_epochs: NonNegativeInt = 1
    precision: Precision = "fp32"
    device: str = "auto"
    deterministic: bool = False
    offload_optimizer: bool = False


class ReconstructionConfig(JobConfig):
    """A run that trains one network."""

    run: ReconstructionRun = ReconstructionRun()
    data: ReconstructionData = ReconstructionData()
    model: ReconstructionModel = ReconstructionModel()
    blocks: Annotated[tuple[BlockConfig, ...], Field(min_length=1)] = (BlockConfig(epochs=15),)
    training: ReconstructionTraining = ReconstructionTraining()


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


def check_reconstruction_config(raw: dict[str, Any], origin: str = "config") -> ReconstructionConfig:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    config = validated(ReconstructionConfig, raw, origin)
    with naming(origin):
        if config.data.synthesize_validation is not None and not isinstance(config.data.validation, str):
            raise InputError("key 'data.synthesize_validation' needs a folder as data.validation")
        config.model = complete(RECONSTRUCTIONS, config.model, "model")
        training = config.training
        training.objective = complete(RECONSTRUCTION_OBJECTIVES, training.objective, "training.objective")
        for number, block in enumerate(config.blocks):
            block.samplings = tuple(
                _completed(sampling, config.data, f"blocks.{number}.samplings.{place}")
                for place, sampling in enumerate(block.samplings)
            )
    return config


def _completed(sampling: SamplingConfig, data: ReconstructionData, key: str) -> SamplingConfig:
    """Fill in what a sampling does not say; raises InputError where it suits no k-space."""
    takes = SAMPLINGS.settings(sampling.name, {}, key)
    common = {"acceleration": data.acceleration, "center_fraction": data.center_fraction}
    given = {name: value for name, value in common.items() if name in takes} | sampling.settings
    whole = complete(SAMPLINGS, SamplingConfig(name=sampling.name, **given), key)
    SAMPLINGS.build(whole.name, **whole.settings)
    return whole
