"""The configuration of reconstruction, of one network: its sections, and what they have to say together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from voxelwave.data.kspace.mraugment import KINDS
from voxelwave.data.kspace.slices import DataRange
from voxelwave.engine.runtime import Precision
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import Component, JobConfig, NumWorkers, RunConfig, RunName, Section, complete
from voxelwave.jobs.common.config_file import naming, validated
from voxelwave.jobs.reconstruct.synthesis.config import SynthesisConfig
from voxelwave.losses.image_mask import Anatomy
from voxelwave.registry import RECONSTRUCTION_OBJECTIVES, RECONSTRUCTIONS, SAMPLINGS

SMALLEST_BAND = 16  # rows: the windows of the similarity are 7 wide, and a network halves its images several times
Compression = Literal["svd", "geometric"]
# The origin is one of the lines that are sampled, and they are the same for all slices.
FIXED: dict[str, Any] = {"name": "equispaced", "offset": "origin"}


Place = Annotated[str, Field(min_length=1)]


def _place_or_share(given: Any) -> str | float:
    share = isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given < 1
    if not (share or (isinstance(given, str) and given)):
        raise ValueError("a file, a folder or a glob is needed, or a share of the files, at least 0 and below 1")
    return given if isinstance(given, str) else float(given)


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
        readout_rows: the middle of the image along the read-out that is reconstructed, one row more where the rest
            would be odd; null takes all of it.
        band_rows: a random band of so many rows of that is trained on in place of the slice, another in each
            micro-batch; null trains on all of it. It is validated on all of it.
        data_range: of which images the largest value scales the similarity.
        skip_unusable: leaves files out that cannot be used, and counts them.
        synthesize, synthesize_validation: how `files` and `validation` are made where they are missing.
    """

    files: Place = "data/reconstruction"
    validation: Annotated[str | float, BeforeValidator(_place_or_share)] = 0.0
    anatomy: Anatomy | None = None
    acceleration: Annotated[float, Field(ge=1)] = 4.0
    center_fraction: Annotated[float, Field(gt=0, le=1)] = 0.08
    readout_rows: PositiveInt | None = None
    band_rows: Annotated[int, Field(ge=SMALLEST_BAND)] | None = None
    data_range: DataRange = "volume"
    coils: CoilsConfig = CoilsConfig()
    skip_unusable: bool = False
    num_workers: NumWorkers = 1
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


def check_reconstruction_config(raw: dict[str, Any], origin: str = "config") -> ReconstructionConfig:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    config = validated(ReconstructionConfig, raw, origin)
    with naming(origin):
        if config.data.synthesize_validation is not None and not isinstance(config.data.validation, str):
            raise InputError("key 'data.synthesize_validation' needs a folder as data.validation")
        rows, band = config.data.readout_rows, config.data.band_rows
        if rows is not None and band is not None and band > rows:
            raise InputError(f"key 'data.band_rows': {band} are more than data.readout_rows={rows} leaves: lower it")
        config.model = complete(RECONSTRUCTIONS, config.model, "model")
        training = config.training
        training.objective = complete(RECONSTRUCTION_OBJECTIVES, training.objective, "training.objective")
        _check_rates(config.blocks)
        _check_buildable(config)
        for number, block in enumerate(config.blocks):
            block.samplings = tuple(
                _completed(sampling, config.data, f"blocks.{number}.samplings.{place}")
                for place, sampling in enumerate(block.samplings)
            )
    return config


def _check_buildable(config: ReconstructionConfig) -> None:
    """Raise InputError for a network or an objective that cannot be made, before anything is written or trained."""
    objective = config.training.objective
    with torch.device("meta"):  # where weights take no memory
        network = RECONSTRUCTIONS.build(config.model.name, **config.model.settings)
        RECONSTRUCTION_OBJECTIVES.build(objective.name, network, **objective.settings)


def _check_rates(blocks: Sequence[BlockConfig]) -> None:
    """Raise InputError for a block whose rate never reaches its peak, or is 0 before its end."""
    for number, (block, last) in enumerate(zip(blocks, accumulate(block.epochs for block in blocks), strict=True)):
        if block.warmup_epochs > block.epochs:
            raise InputError(
                f"key 'blocks.{number}.warmup_epochs': {block.warmup_epochs:g} are more than the {block.epochs} epochs "
                "of the block: its learning rate would never be reached"
            )
        if block.zero_at_epoch is not None and block.zero_at_epoch < last:
            raise InputError(
                f"key 'blocks.{number}.zero_at_epoch': {block.zero_at_epoch}, and the block ends with epoch {last}, "
                "counted from the start of the training: nothing would be learned in between; take its end or later"
            )


def _completed(sampling: SamplingConfig, data: ReconstructionData, key: str) -> SamplingConfig:
    """Fill in what a sampling does not say; raises InputError where it suits no k-space."""
    takes = SAMPLINGS.settings(sampling.name, {}, key)
    common = {"acceleration": data.acceleration, "center_fraction": data.center_fraction}
    given = {name: value for name, value in common.items() if name in takes} | sampling.settings
    whole = complete(SAMPLINGS, SamplingConfig(name=sampling.name, **given), key)
    SAMPLINGS.build(whole.name, **whole.settings)
    return whole
