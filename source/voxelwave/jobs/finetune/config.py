"""The configuration of a fine-tuning run: YAML, checked, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, StrictInt, field_validator

from voxelwave.data.label_maps import Classes
from voxelwave.downstream.load_backbone import Stem
from voxelwave.engine.runtime import Precision
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import (
    BackboneConfig,
    JobConfig,
    RunConfig,
    RunName,
    Section,
    Share,
    check_modalities,
    complete,
)
from voxelwave.jobs.common.config_file import naming, read_config, validated
from voxelwave.ops.tables import CHECKSUM
from voxelwave.registry import AUGMENTATIONS, BACKBONES, MODALITIES

# Nothing that turns a head around: names of classes and targets may say left or right.
DEFAULT_AUGMENTATIONS: dict[str, dict[str, Any]] = {"gamma": {}, "noise": {}}

LabelValue = StrictInt | str  # and no true, which YAML makes of yes and on, too
RESERVED = ("case", "subject", "part", "image", "modality", "model", "bytes", "sha256", CHECKSUM)


class FinetuneRun(RunConfig):
    """As of pretraining; `figures: false` draws nothing. `license` is that of the fine-tuned weights."""

    name: RunName = "finetune"
    figures: bool = True


class SegmentationTask(Section):
    """A class for every voxel.

    `classes` gives the label values of each: a number, a range such as "1000-2035", or a list of these; 0 is the
    background. `other_labels` says what values are of which no class speaks. `width` is that of the decoder at full
    resolution. `hausdorff: false` leaves the distances out of the results.
    """

    name: Literal["segmentation"]
    classes: dict[str, list[LabelValue]]
    other_labels: Literal["error", "background"] = "error"
    loss: Literal["dice_ce", "dice_focal"] = "dice_ce"
    width: PositiveInt = 32
    hausdorff: bool = True

    @field_validator("classes", mode="before")
    @classmethod
    def _as_lists(cls, classes: Any) -> Any:
        if not isinstance(classes, dict):
            return classes
        return {name: of if isinstance(of, list | tuple) else [of] for name, of in classes.items()}

    @field_validator("classes")
    @classmethod
    def _checked(cls, classes: dict[str, list[LabelValue]]) -> dict[str, list[LabelValue]]:
        Classes(classes)
        return classes

    @property
    def table(self) -> Classes:
        """The classes by label value."""
        return Classes(self.classes, others=self.other_labels)


class ClassificationTask(Section):
    """Targets that are true of a volume or not, each by itself: columns of the list of cases, 0, 1 or not known."""

    name: Literal["classification"]
    targets: Annotated[list[str], Field(min_length=1)]
    pooling: Literal["attention", "mean"] = "attention"

    @field_validator("targets")
    @classmethod
    def _apart(cls, targets: list[str]) -> list[str]:
        if len(set(targets)) < len(targets):
            raise ValueError("a target is named twice")
        truths = {f"{target}_truth" for target in targets}
        if taken := [target for target in targets if target in RESERVED or target in truths]:
            raise ValueError(f"'{taken[0]}' is a column of the tables of results: name the target otherwise")
        return targets


class BackboneChoice(Section):
    """What the features come from.

    `path` is a run folder of pretraining, its `backbone.safetensors` or a checkpoint; null begins with random weights
    and the settings of `scratch`. `train: frozen` trains the head alone. Otherwise the backbone learns at `lr_scale`
    times the rate of the head, and each depth at `layer_decay` times that of the one above it. `stem` is for modalities
    that pretraining had no volumes of.
    """

    path: Path | None = None
    train: Literal["full", "frozen"] = "full"
    lr_scale: PositiveFloat = 1.0
    layer_decay: Share = 1.0
    stem: Stem = "repeat"
    scratch: BackboneConfig = BackboneConfig()


class CasesConfig(Section):
    """Which cases, how they are split by subject, and how a training sample is made of one.

    `cases` is a CSV, a folder with a `cases.csv`, or one that `voxelwave prepare` wrote, where `label` is a word in the
    names of the label maps. `spacing_mm: backbone` and modalities of which nothing is said are as pretraining had them.
    One fold has no validation. `num_train_subjects` takes so many of those that the fold leaves. Of the crops of a
    segmentation `foreground_share` lie around a voxel of a class; a classification sees whole volumes, shrunk to
    `crop_size` where they are larger. `augment` names what is done to the samples of a modality, in this order.
    """

    cases: Path
    modality: str | None = None
    label: str = ""
    crop_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    spacing_mm: PositiveFloat | tuple[PositiveFloat, PositiveFloat, PositiveFloat] | Literal["backbone", "native"] = (
        "backbone"
    )
    folds: PositiveInt = 5
    fold: NonNegativeInt | Literal["all"] = 0
    num_train_subjects: PositiveInt | None = None
    foreground_share: Annotated[float, Field(ge=0, le=1)] = 0.67
    augment: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    modalities: dict[str, dict[str, Any]] = Field(default_factory=dict)


class FinetuneTraining(Section):
    """Optimisation. `patience` ends a run after so many validations without a better one; null never does."""

    max_steps: PositiveInt = 1000
    batch_size: PositiveInt = 2
    learning_rate: PositiveFloat = 3e-4
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: NonNegativeFloat = 0.05
    clip_norm: PositiveFloat = 1.0
    precision: Precision = "fp32"
    device: str = "auto"
    deterministic: bool = False
    validate_every_steps: PositiveInt = 100
    patience: PositiveInt | None = None
    checkpoint_every_steps: PositiveInt = 500


class FinetuneConfig(JobConfig):
    """A fine-tuning run."""

    run: FinetuneRun = FinetuneRun()
    task: SegmentationTask | ClassificationTask
    backbone: BackboneChoice = BackboneChoice()
    data: CasesConfig
    training: FinetuneTraining = FinetuneTraining()


class _SegmentationConfig(FinetuneConfig):
    task: SegmentationTask


class _ClassificationConfig(FinetuneConfig):
    task: ClassificationTask


TASKS: dict[str, type[FinetuneConfig]] = {"segmentation": _SegmentationConfig, "classification": _ClassificationConfig}


def load_finetune_config(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read a YAML file, apply overrides such as `training.learning_rate=1e-3`, and check it.

    Raises InputError, in one line, for a missing or malformed file, an unknown key, or a value that does not fit.
    """
    return check_finetune_config(read_config(Path(path), overrides), str(path))


def check_finetune_config(raw: dict[str, Any], origin: str = "config") -> FinetuneConfig:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    # One schema a task, so that an error names the key of the task that was asked for.
    task = raw.get("task")
    name = task.get("name") if isinstance(task, dict) else None
    if name not in TASKS:
        raise InputError(f"{origin}: key 'task.name' is one of {', '.join(TASKS)}, got {name!r}")
    config: FinetuneConfig = validated(TASKS[name], raw, origin)
    with naming(origin):
        return _resolve(config)


def with_defaults(
    config: FinetuneConfig, preprocessing: Mapping[str, Any], modalities: Sequence[str]
) -> FinetuneConfig:
    """Return the configuration with what follows from the backbone's `preprocessing` and the cases' modalities."""
    config = config.model_copy(deep=True)
    data = config.data
    if data.spacing_mm == "backbone":
        given = preprocessing.get("spacing_mm")
        data.spacing_mm = "native" if given is None else tuple(given) if isinstance(given, list) else given
    known = preprocessing.get("modalities", {})
    for name in modalities:
        pretrained = {key: value for key, value in known.get(name, {}).items() if key not in ("channels", "range")}
        settings = data.modalities.get(name, pretrained)
        data.modalities[name] = MODALITIES.settings(name, settings, f"data.modalities.{name}")
        data.augment[name] = {
            step: AUGMENTATIONS.settings(step, of, f"data.augment.{name}.{step}")
            for step, of in data.augment.get(name, DEFAULT_AUGMENTATIONS).items()
        }
    return config


def _resolve(config: FinetuneConfig) -> FinetuneConfig:
    """Check what names components against their constructors."""
    data = config.data
    config.backbone.scratch = complete(BACKBONES, config.backbone.scratch, "backbone.scratch")
    given = [data.modality] if data.modality else []
    check_modalities({"data.modality": given, "data.modalities": data.modalities, "data.augment": data.augment})
    for name, settings in data.modalities.items():
        MODALITIES.settings(name, settings, f"data.modalities.{name}")
    for name, steps in data.augment.items():
        for step, settings in steps.items():
            AUGMENTATIONS.settings(step, settings, f"data.augment.{name}.{step}")
    if data.fold != "all" and data.fold >= data.folds:
        raise InputError(f"key 'data.fold' is 0…{data.folds - 1} or all (data.folds is {data.folds}), got {data.fold}")
    if data.folds == 1 and config.training.patience is not None:
        raise InputError("key 'training.patience' needs validation, and data.folds=1 has none: set it to null")
    return config
