"""The configuration of a run: YAML, checked, with every default filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from voxelwave.data.augmentations import SpatialAugmentation
from voxelwave.engine.runtime import Precision
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import (
    BackboneConfig,
    Component,
    JobConfig,
    NumWorkers,
    RunConfig,
    Section,
    Share,
    check_modalities,
    complete,
)
from voxelwave.jobs.common.config_file import naming, read_config, validated
from voxelwave.jobs.pretrain.pairs_config import DEFAULT_OF_VIEWS, PairsConfig
from voxelwave.losses.masked_reconstruction import MaskedReconstruction
from voxelwave.registry import (
    AUGMENTATIONS,
    BACKBONES,
    CONTRASTIVE_LOSSES,
    MASKINGS,
    MODALITIES,
    OBJECTIVES,
    check_settings,
)

DEFAULT_AUGMENTATIONS: dict[str, dict[str, Any]] = {"flip": {}, "rotate90": {}, "noise": {}}


class SourceConfig(Section):
    """A folder, a glob or a CSV list of files of one modality; of a prepared folder "train" or "test" alone."""

    path: str
    modality: str
    split: Literal["train", "test"] | None = None


class DataConfig(Section):
    """Which volumes, and how a training crop is made of one.

    `view_share: [a, b]` takes a random cuboid of that share of the volume's sides and fits it into `crop_size`, its
    proportions kept, air around it (`[1, 1]`: always the whole volume); null crops voxels as they are,
    `foreground_share` of the crops around one that is not air. `check_content: null` reads every file once before
    training where there are at most 500, else its header only. `steps` are those of each modality in a cycle, 1
    where nothing is said; a source of n volumes gives a share n^(1/source_temperature) of its modality's crops.
    `augment` names what is done to the batches of a modality, in this order. `probe_cases` is a list of cases:
    while the run trains, probes of its features ask for their targets.
    """

    crop_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    sources: list[SourceConfig] = Field(default_factory=list)
    pairs: PairsConfig | None = None
    max_volumes_per_modality: PositiveInt | None = None
    num_workers: NumWorkers = 2
    spacing_mm: PositiveFloat | tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    view_share: tuple[Share, Share] | None = None
    foreground_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    crops_per_volume: PositiveInt = 1
    cached_volumes: Annotated[int, Field(ge=0)] = 0
    steps: dict[str, PositiveInt] = Field(default_factory=dict)
    source_temperature: Annotated[float, Field(ge=1)] = 1.0
    augment: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    check_content: bool | None = None
    modalities: dict[str, dict[str, Any]] = Field(default_factory=dict)
    probe_cases: str | None = None

    @field_validator("view_share")
    @classmethod
    def _ordered(cls, share: tuple[float, float] | None) -> tuple[float, float] | None:
        if share is not None and share[0] > share[1]:
            raise ValueError("the first share must not be above the second")
        return share


class MaskingConfig(Component):
    """The masking by name with its settings."""

    name: str = "mim"


class FeatureTarget(Section):
    """How `target: features` makes its target of the features of the whole volume; all off is the description."""

    stop_gradient: bool = True
    ema_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layer_norm: bool = True


class ModelConfig(Section):
    """Backbone, target, and the widths of the SparK encoder's scales and of the decoder.

    `sparse` is the backend of the encoder. `use_sparse: false` is another way to write dense; `true` leaves the choice
    to `sparse`.
    """

    backbone: BackboneConfig = BackboneConfig()
    target: Literal["voxels", "features"] = "voxels"
    sparse: Literal["auto", "gather", "minkowski", "dense"] = "auto"
    encoder_widths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (128, 192, 256)
    decoder_width: PositiveInt = 128
    features: FeatureTarget = FeatureTarget()

    @model_validator(mode="before")
    @classmethod
    def _use_sparse(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "use_sparse" not in values:
            return values
        wanted = values["use_sparse"]
        if not isinstance(wanted, bool):
            raise ValueError(f"use_sparse is true or false, got {wanted}")
        rest = {key: value for key, value in values.items() if key != "use_sparse"}
        sparse = rest.get("sparse", "auto")
        if sparse == "auto" and not wanted:
            return {**rest, "sparse": "dense"}
        if sparse != "auto" and wanted == (sparse == "dense"):
            raise ValueError(f"use_sparse: {str(wanted).lower()} contradicts sparse: {sparse}; keep one of them")
        return rest


class LossConfig(Component):
    """The contrastive loss by name with its settings, its weight, and the settings of the reconstruction."""

    name: str = "spatial_infonce"
    contrastive_weight: Annotated[float, Field(ge=0)] = 0.5
    shallow_depth: Annotated[int, Field(ge=0)] = 1
    reconstruction: dict[str, Any] = Field(default_factory=dict)


class ObjectiveConfig(Component):
    """What is trained on pairs, by name with its settings: `cross_contrast` or `supervised_synthesis`."""


class TrainingConfig(Section):
    """Optimisation: one step is one modality's `accumulate` batches.

    With `checkpoint_optimizer` the checkpoints of epochs hold the optimiser's state beside the weights.
    """

    epochs: PositiveInt = 100
    max_steps: PositiveInt | None = None
    batch_size: dict[str, PositiveInt] = Field(default_factory=lambda: {"mri": 2, "ct": 2})
    accumulate: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-4
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: PositiveFloat = 1.0
    precision: Precision = "fp32"
    device: str = "auto"
    devices: PositiveInt = 1
    deterministic: bool = False
    compile: bool = False
    checkpoint_every_steps: PositiveInt = 500
    checkpoint_every_epochs: PositiveInt = 1
    checkpoint_optimizer: bool = False
    probe_every_steps: PositiveInt = 50


class Config(JobConfig):
    """A pretraining run."""

    run: RunConfig = RunConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    masking: MaskingConfig = MaskingConfig()
    loss: LossConfig = LossConfig()
    objective: ObjectiveConfig | None = None
    training: TrainingConfig = TrainingConfig()

    def modalities(self) -> list[str]:
        """The modalities that are trained on in the order of their steps: by number of channels, so MRI comes first."""
        names = {source.modality for source in self.data.sources}
        if (pairs := self.data.pairs) is not None:
            names = {"ct" if contrast == "CT" else "mri" for contrast in pairs.contrasts or ()}
            names |= set(pairs.modalities or ())
        return sorted(names, key=lambda name: (MODALITIES.get(name).channels, name))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides such as `training.learning_rate=1e-3`, check, and fill in every default.

    Raises InputError, in one line, for a missing or malformed file, an unknown key, or a value that does not fit.
    """
    return check_config(read_config(Path(path), overrides), str(path))


def check_config(raw: dict[str, Any], origin: str = "config") -> Config:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    config = validated(Config, raw, origin)
    with naming(origin):
        return _resolve(config)


def _resolve(config: Config) -> Config:
    """Check each component's settings against its constructor and fill in its defaults."""
    loss, pairs = config.loss, config.data.pairs
    if (pairs is None) == (not config.data.sources):
        raise InputError("one of data.sources and data.pairs is needed: volumes, or pairs of views")
    if (pairs is None) != (config.objective is None):
        raise InputError("data.pairs and objective go together: an objective for pairs, or none of the two")
    if pairs is not None:
        _check_no_volumes(config, rendered=pairs.of_labels)
    if config.model.target == "voxels" and config.model.features != type(config.model.features)():
        raise InputError("key 'model.features' is of model.target: features, and is nothing to voxels: leave it out")
    if config.data.view_share is not None and config.data.foreground_share != 1:
        raise InputError(
            "key 'data.foreground_share' is of crops at native resolution: with data.view_share leave it out"
        )
    config.model.backbone = complete(BACKBONES, config.model.backbone, "model.backbone")
    config.masking = complete(MASKINGS, config.masking, "masking")
    contrastive = CONTRASTIVE_LOSSES.settings(loss.name, loss.settings, "loss")
    reconstruction = check_settings(
        MaskedReconstruction, loss.reconstruction, "loss.reconstruction", "loss.reconstruction"
    ).model_dump()
    declared = {key: getattr(loss, key) for key in LossConfig.model_fields}
    config.loss = LossConfig(**{**declared, "reconstruction": reconstruction}, **contrastive)
    if config.objective is not None:
        config.objective = complete(OBJECTIVES, config.objective, "objective")
        name = config.objective.name
        if pairs is not None and OBJECTIVES.get(name).needs_labels and not pairs.of_labels:
            raise InputError(
                f"objective '{name}' needs the tissue of every voxel, which views of scans have none of: take "
                f"data.pairs.source: rendered, or another objective"
            )
    check_modalities(
        {
            "data.modalities": config.data.modalities,
            "data.steps": config.data.steps,
            "data.augment": config.data.augment,
            "training.batch_size": config.training.batch_size,
            "data.pairs.modalities": (pairs and pairs.modalities) or (),
        }
    )
    for modality in config.modalities():
        given = config.data.modalities.get(modality, {})
        section = f"data.modalities.{modality}"
        config.data.modalities[modality] = MODALITIES.settings(modality, given, section)
        config.data.augment[modality] = {
            name: AUGMENTATIONS.settings(name, settings, f"data.augment.{modality}.{name}")
            for name, settings in config.data.augment.get(modality, _default_augmentations(config, modality)).items()
        }
        moving = [name for name in config.data.augment[modality] if _moves_voxels(name)]
        if moving and pairs is not None and not pairs.of_labels:
            raise InputError(
                f"key 'data.augment.{modality}.{moving[0]}': it moves voxels, of which the place is known in a pair: "
                f"leave it out, and turn and stretch by data.pairs.degrees and log_stretch"
            )
        if modality not in config.training.batch_size:
            raise InputError(f"key 'training.batch_size' says nothing of modality '{modality}': add `{modality}: 2`")
    return config


def _check_no_volumes(config: Config, *, rendered: bool) -> None:
    """Raise InputError for a setting of volumes alone, which pairs would pass over in silence."""
    if config.data.spacing_mm is not None:
        raise InputError("key 'data.spacing_mm' is of volumes: of views of pairs it is data.pairs.spacing_mm")
    names = ["max_volumes_per_modality", "view_share", "foreground_share", "steps", "source_temperature"]
    sections: list[tuple[str, BaseModel, list[str]]] = [
        ("data", config.data, names + ["augment", "check_content"] * rendered),
        ("model", config.model, ["target", "features"]),
        ("loss", config.loss, ["name", "contrastive_weight", "shallow_depth"]),
    ]
    for section, of, keys in sections:
        for key in keys:
            given, default = getattr(of, key), type(of).model_fields[key].get_default(call_default_factory=True)
            if isinstance(given, dict):  # a resolved configuration names each modality
                given = {name: settings for name, settings in given.items() if settings}
            if given != default:
                raise InputError(f"key '{section}.{key}' is of volumes, and pairs take no such setting: leave it out")
    own, loss = CONTRASTIVE_LOSSES.settings(config.loss.name, {}, "loss"), config.loss
    for key, given in CONTRASTIVE_LOSSES.settings(loss.name, loss.settings, "loss").items():
        if given != own[key]:
            raise InputError(f"key 'loss.{key}' is of volumes: of pairs it is objective.{key}, where there is one")


def _default_augmentations(config: Config, modality: str) -> dict[str, dict[str, Any]]:
    if config.data.pairs is None:
        return DEFAULT_AUGMENTATIONS
    if config.data.pairs.of_labels:
        return {}  # what is rendered differs already
    return DEFAULT_OF_VIEWS.get(modality, {"noise": {}})


def _moves_voxels(name: str) -> bool:
    return issubclass(AUGMENTATIONS.get(name), SpatialAugmentation)
