"""The configuration of a subsampled run, and that of a study of many: YAML, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from voxelwave.data.kspace.hdf5 import MOST_SLICES
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import Component, JobConfig, RunConfig, RunName, Section, complete
from voxelwave.jobs.common.config_file import naming, read_config, set_key, validated
from voxelwave.jobs.common.magnitude_images import MOST_VOLUMES, MagnitudeConfig
from voxelwave.physics.fixed_masks import FixedMaskName
from voxelwave.registry import MASK_RULES, SUBSAMPLED_MODELS

DropRate = Annotated[float, Field(ge=0, lt=1)]
FIXED_MASKS: tuple[str, ...] = get_args(FixedMaskName)
# Completing conjugates is a reconstruction by itself: there is no image of what is kept for a network to stand behind.
WITHOUT_NETWORK = "half_plane"
LEARNED = "learned"  # by the rule of `mask.rule`
OWN = "own"  # a model in a file of the user's
# Settings of a rule, and what they are here.
SAID_ELSEWHERE = {"drop_rate": "mask.drop_rate", "lines": "mask.lines", "seed": "run.seed"}
OwnT = TypeVar("OwnT", bound="SubsampleConfig")


class SubsampleRun(RunConfig):
    """As of pretraining."""

    name: RunName = "subsample"


class SubsampleData(MagnitudeConfig):
    """Images, and how they are parted: volumes and subjects are never in two parts.

    Attributes:
        source: "heads", "phantoms", a path of images as of `voxelwave reconstruct synthesize`, or fully sampled
            single-coil files of fastMRI: one, a folder or a glob.
        phase: makes images of magnitudes complex with a smooth random phase. Without it they stay magnitudes, whose
            k-space holds everything twice.
        noise: standard deviation of the complex noise in units of the brightest pixel, where a phase is given.
        validation, test: their shares of the images.
    """

    volumes: Annotated[int, Field(ge=1, le=MOST_VOLUMES)] = 20
    slices: Annotated[int, Field(ge=1, le=MOST_SLICES)] = 5
    phase: bool = True
    noise: Annotated[float, Field(ge=0, le=1)] = 0.005
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> SubsampleData:
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation and test are shares whose sum is below 1, got {self.validation:g} + {self.test:g}"
            )
        return self


class RuleConfig(Component):
    """How a mask is learned, by name with the settings of the rule."""

    name: str = "exploring"


class MaskConfig(Section):
    """Which frequencies are kept.

    Attributes:
        drop_rate: the share that is removed.
        learn: with the network, by `rule`; else the mask called `fixed` is kept.
        lines: whole lines along the height in place of single frequencies.
        mask_lr: of the scores of a learned mask; null takes the rate that belongs to the rule.
        epochs: before those of the training, in which a learned mask moves. Behind the final one the network begins
            anew, and is trained exactly as behind a fixed one.
    """

    drop_rate: DropRate = 0.4
    learn: bool = False
    fixed: FixedMaskName = "random"
    lines: bool = False
    rule: RuleConfig = RuleConfig()
    mask_lr: PositiveFloat | None = None
    epochs: PositiveInt = 8


class SubsampledModel(Component):
    """The network behind the mask by name with its settings."""

    name: str = "unet"


class SubsampleTraining(Section):
    """Optimisation. The rate rises over `warmup_steps` and falls by a cosine.

    `patience` ends a run after so many epochs without a lower error of validation, counted once the mask is final.
    """

    epochs: PositiveInt = 60
    batch_size: PositiveInt = 10
    learning_rate: PositiveFloat = 2e-3
    warmup_steps: PositiveInt = 20
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat = 1.0
    patience: PositiveInt | None = None
    device: str = "auto"
    deterministic: bool = False


class SubsampleConfig(JobConfig):
    """A run that trains one network behind one mask."""

    run: SubsampleRun = SubsampleRun()
    data: SubsampleData = SubsampleData()
    mask: MaskConfig = MaskConfig()
    model: SubsampledModel = SubsampledModel()
    training: SubsampleTraining = SubsampleTraining()


class StudySection(Section):
    """Which runs a study consists of: every mask at every drop rate with every seed.

    Attributes:
        masks: what is compared: names of fixed masks, of rules, or "learned", which is the rule of `mask.rule`.
        controls: others with the same network.
        mask_lrs: rates of the scores of "learned", of which validation chooses one for each drop rate; none takes
            `mask.mask_lr`.
        seeds: of weights, order and random masks.
        l1_wavelet: scores the masks again with a reconstruction that none of them was learned with.
        workers: runs side by side; null takes as many as there are cores.
    """

    drop_rates: Annotated[tuple[DropRate, ...], Field(min_length=1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    masks: Annotated[tuple[str, ...], Field(min_length=1)] = ("random", LEARNED)
    controls: tuple[str, ...] = ("power",)
    mask_lrs: tuple[PositiveFloat, ...] = ()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    l1_wavelet: bool = True
    workers: Annotated[int, Field(ge=1, le=64)] | None = None

    @field_validator("drop_rates", "masks", "controls", "mask_lrs", "seeds")
    @classmethod
    def _are_different(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if twice := [one for index, one in enumerate(given) if one in given[:index]]:
            raise ValueError(f"{twice[0]} is named twice")
        return given


class StudyConfig(SubsampleConfig):
    """A study: what all its runs share, and in what they differ."""

    study: StudySection = StudySection()


def load_subsample_config(
    kind: type[OwnT], path: Path | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> OwnT:
    """Read a YAML file (none: the defaults), apply overrides and `flags` (values by "section.key"), and check it.

    Raises InputError, in one line, for a missing or malformed file, an unknown key, or a value that does not fit.
    """
    raw = read_config(path, overrides)
    for key, value in (flags or {}).items():
        set_key(raw, key, value)
    return check_subsample_config(kind, raw, "options" if path is None else str(path))


def check_subsample_config(kind: type[OwnT], raw: dict[str, Any], origin: str = "config") -> OwnT:
    """Check a configuration given as plain values; raises InputError, which names the `origin` and the key."""
    config = validated(kind, raw, origin)
    with naming(origin):
        if config.model.name != OWN:
            config.model = complete(SUBSAMPLED_MODELS, config.model, "model")
        if elsewhere := sorted({*SAID_ELSEWHERE} & {*config.mask.rule.settings}):
            raise InputError(f"key 'mask.rule.{elsewhere[0]}': is {SAID_ELSEWHERE[elsewhere[0]]}: set that")
        settings = complete(MASK_RULES, config.mask.rule, "mask.rule").settings
        own = {key: value for key, value in settings.items() if key not in SAID_ELSEWHERE}
        config.mask.rule = RuleConfig(name=config.mask.rule.name, **own)
        if config.mask.fixed == WITHOUT_NETWORK and not config.mask.learn:
            raise InputError(f"key 'mask.fixed': {WITHOUT_NETWORK} is reconstructed without a network, by a study")
        if isinstance(config, StudyConfig):
            _check_study(config.study)
        elif config.mask.mask_lr is not None and not config.mask.learn:
            raise InputError("key 'mask.mask_lr': this mask is fixed: set mask.learn=true (--learn-mask), or leave it")
    return config


def _check_study(study: StudySection) -> None:
    """Raise InputError for a mask that is not known, or is named as a case and as a control."""
    known = (*(name for name in FIXED_MASKS if name != WITHOUT_NETWORK), LEARNED, *MASK_RULES.names())
    for key in ("masks", "controls"):
        for name in getattr(study, key):
            if name not in known:
                raise InputError(f"key 'study.{key}': unknown mask '{name}'; known: {', '.join(known)}")
    if study.mask_lrs and LEARNED not in (*study.masks, *study.controls):
        raise InputError(f"key 'study.mask_lrs': are tried for the mask '{LEARNED}', which study.masks does not name")
    if both := {*study.masks} & {*study.controls}:
        raise InputError(f"key 'study.controls': '{min(both)}' is one of study.masks: leave it out of one of them")
