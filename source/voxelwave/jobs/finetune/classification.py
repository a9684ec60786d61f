"""Fine-tuning for classification: whole volumes, targets that may be unknown, areas under the ROC curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor, nn

from voxelwave.contracts import StepOutput
from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.splits import Split
from voxelwave.downstream.classification import predict_targets, whole
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.evaluation.classification import areas_under_curve
from voxelwave.evaluation.overlap import mean_of_known
from voxelwave.jobs.finetune.config import CasesConfig, ClassificationTask
from voxelwave.jobs.finetune.data import Held, Task, checked_finite
from voxelwave.ops.files import write_text
from voxelwave.ops.tables import as_csv


class Classification(Task):
    """Predicts for each target whether it is true of a volume."""

    score = "validation_auc"

    def __init__(self, task: ClassificationTask, data: CasesConfig, reader: ScanReader) -> None:
        self._targets, self._reader, self._size = task.targets, reader, data.crop_size
        self.reading = data.model_dump_json(include={"crop_size", "spacing_mm", "modalities"})

    def accept(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases of which a target is known; raises InputError for what is no such target."""
        known = sorted({name for case in cases for name in case.targets})
        for name in self._targets:
            if name not in known:
                raise InputError(
                    f"target '{name}' is known of none of the {len(cases)} cases; their list has: "
                    f"{', '.join(known) or 'no targets'}"
                )
            if other := [case for case in cases if case.targets.get(name, 0) not in (0, 1)]:
                raise InputError(
                    f"target '{name}' of case '{other[0].name}' is {other[0].targets[name]}: a target is 0 or 1, or "
                    f"empty where it is not known"
                )
        return [case for case in cases if any(name in case.targets for name in self._targets)]

    def check_split(self, split: Split) -> None:
        """Raise InputError where the known cases of a target are all alike."""
        for part, cases in (("training", split.train), ("validation", split.validation)):
            for name in self._targets if cases else ():
                values = {case.targets[name] for case in cases if name in case.targets}
                if len(values) < 2:
                    alike = f"only {values.pop()}" if values else "not known"
                    raise InputError(
                        f"target '{name}' is {alike} in the {len(cases)} {part} cases of this fold: take other "
                        f"data.folds, another run.seed or more data.num_train_subjects, or leave the target out"
                    )

    def hold(self, case: Case) -> Held:
        """Read a whole image as the model will see it."""
        try:
            scan = self._reader(case.image, case.modality)
        except UnusableVolume as unusable:
            raise InputError(f"image {case.image}: {unusable}") from None
        return Held(case, whole(scan.volume, self._size).half(), scan.affine)

    def sample(self, held: Held, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the volume and its targets, nan where one is not known."""
        return held.content.float(), torch.from_numpy(self._truth(held.case))

    def loss(self, logits: Tensor, target: Tensor) -> StepOutput:
        """Return the cross-entropy, averaged over the targets that are known."""
        known = ~target.isnan()
        each = F.binary_cross_entropy_with_logits(logits, target.nan_to_num(), reduction="none")
        loss = (each * known).sum() / known.sum().clamp_min(1)
        return StepOutput(loss, {"loss": loss.detach()})

    def validate(self, model: nn.Module, cases: Sequence[Held]) -> dict[str, float]:
        """Return the mean area over the targets, that of each, and the loss."""
        logits = self._logits(model, cases)
        truth = torch.from_numpy(np.stack([self._truth(held.case) for held in cases]))
        areas = areas_under_curve(logits.double().sigmoid().numpy(), truth.double().numpy())
        named = zip(self._targets, areas, strict=True)
        known = {f"{self.score}_{name}": area for name, area in named if not math.isnan(area)}
        return {
            self.score: mean_of_known(areas),
            **known,
            "validation_loss": float(self.loss(logits, truth).loss),
        }

    def evaluate(self, model: nn.Module, cases: Mapping[str, Sequence[Held]], folder: Path) -> dict[str, Any]:
        """Write the probabilities of every case and the area of every target."""
        rows, areas, summary = [], [], {}
        for part, of in cases.items():
            probabilities = self._logits(model, of).double().sigmoid().numpy()
            truth = np.stack([self._truth(held.case) for held in of]).astype(np.float64)
            rows += [self._row(part, *one) for one in zip(of, probabilities, truth, strict=True)]
            by_target = dict(zip(self._targets, areas_under_curve(probabilities, truth), strict=True))
            areas += [
                {"part": part, "target": name, "auc": by_target[name], "positive": true, "negative": false}
                for name, true, false in zip(
                    self._targets, (truth == 1).sum(0).tolist(), (truth == 0).sum(0).tolist(), strict=True
                )
            ]
            summary[part] = {"cases": len(of), "mean_auc": mean_of_known(list(by_target.values())), "auc": by_target}
        columns = [column for name in self._targets for column in (name, f"{name}_truth")]
        write_text(folder / "predictions.csv", as_csv(["part", "case", "subject", *columns], rows))
        write_text(folder / "results.csv", as_csv(["part", "target", "auc", "positive", "negative"], areas))
        return summary

    def draw(self, model: nn.Module, cases: Sequence[Held], path: Path) -> None:
        """Draw the ROC curve of every target."""
        from voxelwave.jobs.finetune.figures import draw_roc

        probabilities = self._logits(model, cases).double().sigmoid().numpy()
        truth = np.stack([self._truth(held.case) for held in cases])
        draw_roc(probabilities, truth, self._targets, path)

    def _truth(self, case: Case) -> ndarray:
        return np.array([case.targets.get(name, math.nan) for name in self._targets], dtype=np.float32)

    def _logits(self, model: nn.Module, cases: Sequence[Held]) -> Tensor:
        predicted = ((predict_targets(model, held.content, size=self._size), held.case) for held in cases)
        return torch.stack([checked_finite(logits, case) for logits, case in predicted])

    def _row(self, part: str, held: Held, probabilities: ndarray, truth: ndarray) -> dict[str, Any]:
        named = zip(self._targets, probabilities.tolist(), truth.tolist(), strict=True)
        row: dict[str, Any] = {"part": part, "case": held.case.name, "subject": held.case.subject}
        for name, probability, true in named:
            row |= {name: f"{probability:.12g}", f"{name}_truth": true if math.isnan(true) else int(true)}
        return row
