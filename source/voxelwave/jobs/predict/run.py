"""Prediction: what a fine-tuned model says of other images, in their own space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.discovery import base_folder
from voxelwave.data.listing.scans import series_name
from voxelwave.data.recognition.labels import without_suffix
from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.downstream.inference import AT_ONCE, OVERLAP
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.engine.runtime import best_device
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.images import Images
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.predict.results import SegmentationFolder, TargetTable
from voxelwave.ops.files import absolute, free_stem, locked


def predict(
    run: Path,
    source: str,
    out: Path,
    *,
    modality: str | None = None,
    overlap: float = OVERLAP,
    batch_size: int = AT_ONCE,
    console: Console | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Predict every image at `source` with the model of a fine-tuning run; what is in `out` already is kept.

    A segmentation writes `<name>_seg.nii.gz` for each image into the folder `out`, at its place below `source` where
    that is a folder, in the voxels of the image, and `labels.json`. A classification writes one table, `out`.

    Args:
        run: folder of a finished `voxelwave finetune`.
        source: a file, a folder, a glob, a CSV list, or a folder that `voxelwave prepare` wrote.
        modality: of every image that does not say its own; None tells it as `voxelwave prepare` does.
        overlap: of windows, as a share of their side.
        batch_size: windows at a time.

    Raises InputError where there is no such run or nothing to predict, or `out` is of another model.
    """
    console = console or Console()
    if not 0 <= overlap < 1 or batch_size < 1:
        raise InputError(
            f"overlap lies in 0 to 1 (without 1) and batch_size is at least 1: got {overlap}, {batch_size}"
        )
    # 1. The model and the images.
    model, description = load_finetuned(run)
    model.to(best_device())
    images = Images(source, modality)
    results: SegmentationFolder | TargetTable
    if description["task"]["name"] == "classification":
        results = TargetTable(model, description, out)
    else:
        places = _places(images.cases, source)
        results = SegmentationFolder(model, description, out, places=places, overlap=overlap, batch_size=batch_size)

    # 2. One image after the other but for those that are done; each is on disk before the next.
    features: Any = model.features
    with locked(out), stop_on_signal() as signalled:
        results.go_on()
        todo = images.without(results.has)
        out_before = len(images.refused)
        done = images.each(
            todo,
            ScanReader(features),
            results.add,
            verb="predicted",
            should_stop=lambda: signalled.asked or should_stop(),
        )

    # 3. What became of all.
    images.say(console)
    kept = len(images.cases) - len(todo) - out_before
    complete = done + len(images.refused) - out_before == len(todo)
    state = "predicted" if complete else "stopped, the same command goes on; so far"
    before = f", {kept} were there" if kept else ""
    console.say(f"{state}: {done} images{before}, {len(images.unusable)} cannot be used; {out}")
    return Outcome(complete, len(images.unusable))


def _places(cases: Sequence[Case], source: str) -> dict[str, str]:
    """Return where the result of each image goes, without suffix: its place below the folder of `source`.

    The whole path where it lies elsewhere. It does not depend on the other images: a longer list moves no result.
    """
    root, taken = absolute(base_folder(source)), set[str]()
    places = {}
    for case in cases:
        image = absolute(case.image)
        below = image.relative_to(root if image.is_relative_to(root) else image.anchor)
        plain = (below / series_name(case.series)).as_posix() if case.series else without_suffix(below.as_posix())
        places[case.place] = free_stem(plain, taken)
    return places
