"""What a fine-tuning run leaves when its training is complete, and means over folds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from voxelwave.downstream.finetuned import save_finetuned
from voxelwave.engine.checkpoint import BEST, load_checkpoint
from voxelwave.errors import InputError
from voxelwave.jobs.common.session import Session
from voxelwave.jobs.finetune.figures import draw_course
from voxelwave.jobs.finetune.fold import Fold
from voxelwave.ops.files import write_text
from voxelwave.ops.texts import read_json, to_json

RESULTS = "results.json"


def finish(fold: Fold, session: Session, model: nn.Module, module: nn.Module) -> None:
    """Take the best weights, and write model, predictions, scores and figures, the scores last.

    `model` is what `fabric.setup` made of `module`.
    """
    config, task, data, folder = fold.config, fold.task, fold.data, session.folder
    best_step = session.steps
    if data.validation:
        best = load_checkpoint(folder / BEST)
        module.load_state_dict(best["model"])
        best_step = best["step"]
    described = {**fold.description, "data": {**fold.description["data"], "steps": best_step}}
    save_finetuned(folder, module, described)
    parts = {name: cases for name, cases in (("validation", data.validation), ("test", data.test)) if cases}
    scores = task.evaluate(model, parts, folder) if parts else {}
    if config.run.figures:
        (folder / "figures").mkdir(exist_ok=True)
        draw_course(session.records, task.score, folder / "figures" / "losses.png")
        task.draw(model, data.validation or data.test or data.train, folder / "figures" / "predictions.png")
    results = {
        "task": config.task.name,
        "fold": config.data.fold,
        "folds": config.data.folds,
        "steps": session.steps,
        "best_step": best_step,
        "trained_on": {"cases": len(data.train), "subjects": len({held.case.subject for held in data.train})},
        **scores,
    }
    write_results(folder, results)
    for part, of in scores.items():
        means = ", ".join(
            f"{name.replace('_', ' ')} {value:.4f}"
            for name, value in of.items()
            if name.startswith("mean") and not math.isnan(value)
        )
        session.console.say(f"{part}, {of['cases']} cases: {means}")
    session.console.say(f"done: {folder}")


def steps_of_results(folder: Path) -> int | None:
    """Return the steps of the model that was evaluated; the file is written last, so that all else is there too."""
    try:
        return int(read_results(folder)["steps"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def read_results(folder: Path) -> dict[str, Any]:
    """Read `results.json`; raises InputError where it is damaged, and OSError where it is not there."""
    try:
        return dict(read_json(folder / RESULTS))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{folder / RESULTS} is damaged ({error}): delete it, and the fold is evaluated anew"
        ) from None


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json`; what is not a number is null, since JSON has no word for it."""
    write_text(folder / RESULTS, to_json(results))


def over_folds(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, standard deviation and values of every number that the results of folds share, nested as they are.

    A number that a fold does not know, null or nan, does not count; the deviation is that of a sample, null for one.
    """
    summary: dict[str, Any] = {}
    for key in folds[0]:
        values = [fold[key] for fold in folds if key in fold]
        if all(isinstance(value, Mapping) for value in values):
            summary[key] = over_folds(values)
        elif all(value is None or isinstance(value, int | float) for value in values):
            known = [value for value in values if value is not None and not _unknown(value)]
            summary[key] = {
                "mean": statistics.fmean(known) if known else None,
                "std": statistics.stdev(known) if len(known) > 1 else None,
                "folds": values,
            }
    return summary


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
