"""Fine-tuning for segmentation: crops of labelled volumes, Dice, label maps in the space of their images."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voxelwave.contracts import StepOutput
from voxelwave.data.augmentations import SpatialAugmentation
from voxelwave.data.batches.labelled import LabelledVolume
from voxelwave.data.batches.views import RandomView
from voxelwave.data.label_maps import LabelMap, check_same_grid, onto_grid, read_labels
from voxelwave.data.listing.cases import Case
from voxelwave.data.reading.volume import spacing_of
from voxelwave.data.store import is_stored
from voxelwave.downstream.inference import OVERLAP, predict_volume, write_prediction
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.evaluation.overlap import dice_scores, mean_of_known
from voxelwave.evaluation.segmentation import score_segmentation
from voxelwave.jobs.finetune.config import CasesConfig, SegmentationTask
from voxelwave.jobs.finetune.data import Held, Task, checked_finite
from voxelwave.ops.files import write_text
from voxelwave.ops.tables import as_csv
from voxelwave.ops.texts import to_json

DRAWN_CASES = 4
VALIDATION_OVERLAP = 0.25  # of windows: the results take more
LEGEND = "labels.json"
DISTANCE = "hd95_mm"


class Segmentation(Task):
    """Segments volumes by classes of label values."""

    score = "validation_dice"

    def __init__(self, task: SegmentationTask, data: CasesConfig, reader: ScanReader) -> None:
        self._classes, self._hausdorff, self._reader = task.table, task.hausdorff, reader
        self._window = data.crop_size
        self._view = RandomView(crop_size=data.crop_size, foreground_share=data.foreground_share)
        self._loss_name = task.loss
        self._values = {name: ", ".join(map(str, of)) for name, of in task.classes.items()}
        read_as = task.model_dump(include={"name", "classes", "other_labels"})
        self.reading = json.dumps([read_as, data.model_dump(mode="json", include={"spacing_mm", "modalities"})])

    @cached_property
    def _loss(self) -> nn.Module:
        # Importing MONAI takes seconds, which processes that read cases do without.
        from monai.losses import DiceCELoss, DiceFocalLoss

        kind = DiceCELoss if self._loss_name == "dice_ce" else DiceFocalLoss
        # Over the batch: of one crop many classes are missing, and their Dice would be noise.
        loss: nn.Module = kind(to_onehot_y=True, softmax=True, batch=True)
        return loss

    def accept(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases; raises InputError where one has no label map."""
        if without := [case for case in cases if case.label is None]:
            more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
            way_out = (
                "prepare it together with its label maps, and look at data.label"
                if is_stored(without[0].image)
                else "name it in the column 'label' of the list, or leave the case out"
            )
            raise InputError(f"case '{without[0].name}'{more} has no label map: {way_out}")
        return list(cases)

    def hold(self, case: Case) -> Held:
        """Read image and labels, both on the grid of the image at its working spacing."""
        try:
            scan = self._reader(case.image, case.modality)
        except UnusableVolume as unusable:
            raise InputError(f"image {case.image}: {unusable}") from None
        truth = self._truth(case)
        labels = onto_grid(truth.array, truth.affine, shape=scan.volume.shape[1:], to_affine=scan.affine)
        content = LabelledVolume(scan.volume, torch.from_numpy(labels), source=scan.source)
        return Held(case, content, scan.affine)

    def check_held(self, train: Sequence[Held], validation: Sequence[Held]) -> None:
        """Raise InputError where a class is in no training case, or none at all in those for validation."""
        present = {label for held in train for label in held.content.present}
        missing = [name for index, name in enumerate(self._classes.names) if index and index not in present]
        if not missing and validation and not any(held.content.present for held in validation):
            raise InputError(
                f"the {len(validation)} validation cases of this fold hold no voxel of any class: take other "
                f"data.folds or another run.seed, or give the list a column 'fold'"
            )
        if not missing:
            return
        cases = f"the {len(train)} training cases" if len(train) > 1 else f"the training case '{train[0].case.name}'"
        more = "take other label values in task.classes, another run.seed or more data.num_train_subjects"
        if not present:
            raise InputError(f"{cases} hold no voxel of any class, only background: {more}")
        named = ", ".join(f"'{name}' (label values {self._values[name]})" for name in missing)
        raise InputError(f"{cases} hold no voxel of class {named}: {more}, or leave the class out")

    def sample(self, held: Held, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a crop and its labels `[1, D, H, W]`."""
        volume, labels = held.content.crop(self._view, generator)
        return volume, labels[None]

    def moved(self, target: Tensor, augmentation: SpatialAugmentation, generator: torch.Generator) -> Tensor:
        """Return the labels moved as the voxels were."""
        return augmentation.moved(target, generator)

    def loss(self, logits: Tensor, target: Tensor) -> StepOutput:
        """Return Dice and cross-entropy, or Dice and focal loss, added."""
        loss: Tensor = self._loss(logits, target)
        return StepOutput(loss, {"loss": loss.detach()})

    def validate(self, model: nn.Module, cases: Sequence[Held]) -> dict[str, float]:
        """Return the mean Dice, over classes of their means over cases, and that of each class."""
        scores = [
            dice_scores(self._segmented(model, held), held.content.labels, num_classes=len(self._classes))
            for held in cases
        ]
        by_class = [mean_of_known(list(of)) for of in zip(*scores, strict=True)]
        named = zip(self._classes.names[1:], by_class, strict=True)
        known = {f"{self.score}_{name}": value for name, value in named if not math.isnan(value)}
        return {self.score: mean_of_known(by_class), **known}

    def evaluate(self, model: nn.Module, cases: Mapping[str, Sequence[Held]], folder: Path) -> dict[str, Any]:
        """Write label maps in the space of the images and scores in that of their label maps."""
        predictions = folder / "predictions"
        predictions.mkdir(exist_ok=True)
        legend = {"classes": {str(index): name for index, name in enumerate(self._classes.names)}}
        write_text(predictions / LEGEND, to_json(legend))
        rows = [
            {"part": part, "case": held.case.name, "subject": held.case.subject, "class": name, **scores}
            for part, of in cases.items()
            for held in of
            for name, scores in self._scored(model, held, predictions).items()
        ]
        columns = ["dice", DISTANCE] if self._hausdorff else ["dice"]
        write_text(folder / "results.csv", as_csv(["part", "case", "subject", "class", *columns], rows))
        return {part: self._summary([row for row in rows if row["part"] == part], columns) for part in cases}

    def draw(self, model: nn.Module, cases: Sequence[Held], path: Path) -> None:
        """Draw image, truth and prediction of some cases."""
        from voxelwave.jobs.finetune.figures import draw_segmentations

        rows = [
            (
                held.case.name,
                held.content.volume[0].float().numpy(),
                held.content.labels.numpy(),
                self._segmented(model, held).numpy(),
            )
            for held in cases[:DRAWN_CASES]
        ]
        draw_segmentations(rows, self._classes.names[1:], path)

    def _truth(self, case: Case) -> LabelMap:
        """Return the classes of a case on the grid of its label map."""
        assert case.label is not None
        try:
            labels = read_labels(case.label)
            check_same_grid(labels, case.image)
            return LabelMap(self._classes.indices(labels.array), labels.affine)
        except UnusableVolume as unusable:
            raise InputError(f"label map {case.label}: {unusable}") from None

    def _logits(self, model: nn.Module, held: Held, *, overlap: float = OVERLAP) -> Tensor:
        device = next(model.parameters()).device
        volume = held.content.volume.to(device).float()
        number = len(self._classes)
        logits = predict_volume(model, volume, window=self._window, overlap=overlap, num_classes=number)
        return checked_finite(logits, held.case)

    def _segmented(self, model: nn.Module, held: Held) -> Tensor:
        return self._logits(model, held, overlap=VALIDATION_OVERLAP).argmax(0).byte().cpu()

    def _scored(self, model: nn.Module, held: Held, predictions: Path) -> dict[str, dict[str, float]]:
        """Write the label map of a case, and return the scores of each class."""
        case = held.case
        path, source = predictions / f"{case.name}.nii.gz", held.content.source
        written = write_prediction(path, self._logits(model, held), held.affine, like=source)
        truth = self._truth(case)
        # What was written is scored, voxel by voxel, on the grid of the label map.
        predicted = onto_grid(written, source.affine, shape=truth.array.shape, to_affine=truth.affine)
        number = len(self._classes)
        if self._hausdorff:
            scores = score_segmentation(predicted, truth.array, num_classes=number, spacing_mm=spacing_of(truth.affine))
        else:
            own, true = (torch.from_numpy(of.astype(np.uint8)) for of in (predicted, truth.array))
            scores = {"dice": dice_scores(own, true, num_classes=number)}
        names = self._classes.names[1:]
        return {name: {key: of[index] for key, of in scores.items()} for index, name in enumerate(names)}

    def _summary(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
        summary: dict[str, Any] = {"cases": len({row["case"] for row in rows})}
        for column in columns:
            by_class = {
                name: mean_of_known([row[column] for row in rows if row["class"] == name])
                for name in self._classes.names[1:]
            }
            summary[f"mean_{column}"] = mean_of_known(list(by_class.values()))
            summary[column] = by_class
        if DISTANCE in columns:
            # Of a class that was missed there is no distance: without it a mean may be the better for that.
            summary[f"cases_without_{DISTANCE}"] = {
                name: sum(
                    row["class"] == name and math.isnan(row[DISTANCE]) and not math.isnan(row["dice"]) for row in rows
                )
                for name in self._classes.names[1:]
            }
        return summary
