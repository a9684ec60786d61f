"""All that a fine-tuning run needs before its first step, checked: nothing is written until it is there."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from voxelwave.data.foreground import cropped_at
from voxelwave.data.listing.cases import find_cases
from voxelwave.data.listing.splits import split_cases
from voxelwave.downstream.description import CROPPED
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.finetuned import build_model
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.jobs.common.config import check_crop
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.finetune.classification import Classification
from voxelwave.jobs.finetune.config import FinetuneConfig, SegmentationTask, with_defaults
from voxelwave.jobs.finetune.data import FoldData, Held, Task
from voxelwave.jobs.finetune.model import describe_model, make_features
from voxelwave.jobs.finetune.segmentation import Segmentation
from voxelwave.registry import MODALITIES


@dataclass
class Fold:
    """The parts of a run of one fold.

    Attributes:
        config: with what follows from backbone and cases filled in.
        features: the backbone, as the run begins with it.
        description: of the whole model.
        left_out: cases that cannot be used.
    """

    config: FinetuneConfig
    features: FeaturePyramid
    description: dict[str, Any]
    task: Task
    data: FoldData
    left_out: int

    def introduction(self) -> list[str]:
        """Say what is trained on, and what of the backbone was loaded."""
        parts = {"training": self.data.train, "validation": self.data.validation, "test": self.data.test}
        counts = ", ".join(f"{len(of)} {name}" for name, of in parts.items())
        left_out = f"; {self.left_out} left out, none of whose targets is known" if self.left_out else ""
        lines = [f"cases: {counts}{left_out}"]
        columns = {name for of in parts.values() for one in of for name in one.case.targets}
        if unused := sorted(columns - set(self.description["task"].get("targets", ()))):
            lines.append(f"columns of the list that are not trained on: {', '.join(unused)}")
        modalities = {part: {one.case.modality for one in of} for part, of in parts.items()}
        lines += [
            f"note: {part} has cases of {name}, of which none is trained on"
            for part, names in modalities.items()
            for name in sorted(names - modalities["training"])
        ]
        return lines if self.features.report is None else [*lines, f"backbone: {self.features.report}"]


def prepare_fold(
    config: FinetuneConfig, checkpoint: Mapping[str, Any] | None, kept: MutableMapping[Any, Held], console: Console
) -> Fold:
    """Find and read the cases of the fold of `config`, and load the backbone.

    Args:
        checkpoint: of the run that is resumed; its backbone need not be there any more.
        kept: cases that were read before, and will be for the next fold.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    # 1. The cases, as their list has them, and the backbone.
    targets = [] if isinstance(config.task, SegmentationTask) else config.task.targets
    found = find_cases(config.data.cases, modality=config.data.modality or "", label=config.data.label, targets=targets)
    modalities = sorted({case.modality for case in found}, key=lambda name: (MODALITIES.get(name).channels, name))
    if checkpoint is None:
        features = make_features(config.backbone, modalities, config.run.seed)
    else:
        features = _of_checkpoint(checkpoint)
    config = with_defaults(config, features.description.get("preprocessing", {}), modalities)
    check_crop(config.data.crop_size, features.strides[-1])

    # 2. The task reads as the model will be told to.
    if checkpoint is None:
        cropped = cropped_at(case.image for case in found)
    else:
        cropped = checkpoint["description"]["preprocessing"].get(CROPPED)
    preprocessing = describe_model(config, features, {}, cropped=cropped)["preprocessing"]
    reader = ScanReader(FeaturePyramid(features.backbone, description={"preprocessing": preprocessing}))
    task = _task(config, reader)
    cases = task.accept(found)

    # 3. Who is in which part, and their files.
    data = config.data
    assert data.fold != "all"
    split = split_cases(
        cases,
        folds=data.folds,
        fold=data.fold,
        seed=config.run.seed,
        num_train_subjects=data.num_train_subjects,
        targets=targets,
    )
    task.check_split(split)
    console.say(f"reading {sum(map(len, split))} cases")
    fold = FoldData(
        task,
        split,
        batch_size=config.training.batch_size,
        seed=config.run.seed,
        augment=data.augment,
        kept=kept,
    )
    task.check_held(fold.train, fold.validation)
    counts = {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}
    description = checkpoint["description"] if checkpoint else describe_model(config, features, counts, cropped=cropped)
    return Fold(config, features, description, task, fold, len(found) - len(cases))


def _of_checkpoint(checkpoint: Mapping[str, Any]) -> FeaturePyramid:
    features = build_model(checkpoint["description"]).features
    assert isinstance(features, FeaturePyramid)
    return features


def _task(config: FinetuneConfig, reader: ScanReader) -> Task:
    if isinstance(config.task, SegmentationTask):
        return Segmentation(config.task, config.data, reader)
    return Classification(config.task, config.data, reader)
