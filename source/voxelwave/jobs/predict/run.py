"""Prediction: what a fine-tuned model says of other images, in their own space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import nn

from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.discovery import Source, find_files, home_expanded
from voxelwave.data.listing.images import find_images, modality_of
from voxelwave.data.listing.manifest import DATASET
from voxelwave.data.recognition.labels import without_suffix
from voxelwave.downstream.features import FeaturePyramid
from voxelwave.downstream.finetuned import load_finetuned
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.engine.runtime import best_device
from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.predict.results import SegmentationFolder, TargetTable
from voxelwave.ops.files import free_stem, locked
from voxelwave.registry import MODALITIES


def predict(
    run: Path,
    source: str,
    out: Path,
    *,
    modality: str | None = None,
    overlap: float = 0.5,
    batch_size: int = 1,
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

    Raises:
        InputError: where there is no such run or nothing to predict, or `out` is of another model.
    """
    console = console or Console()
    if not 0 <= overlap < 1 or batch_size < 1:
        raise InputError(
            f"overlap lies in 0 to 1 (without 1) and batch_size is at least 1: got {overlap}, {batch_size}"
        )
    # 1. The model, the images, and what is done already.
    model, description = load_finetuned(run)
    model.to(best_device())
    cases, label_maps = _images(source, modality)
    results = _results(model, description, out, _places(cases, source), overlap=overlap, batch_size=batch_size)
    todo = [case for case in cases if not results.has(case)]

    # 2. One image after the other; each is on disk before the next.
    features: Any = model.features
    reader, refused = ScanReader(features), []
    done = 0
    progress = Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True)
    with locked(results.lock), stop_on_signal() as signalled, progress:
        for case in progress.track(todo, description="images"):
            if signalled.asked or should_stop():
                break
            try:
                told = _told(case, source, features)
                results.add(told, reader(told.image, told.modality))
                done += 1
            except UnusableVolume as unusable:
                refused.append(f"{case.image}: {unusable}")
            except (RuntimeError, MemoryError) as error:  # what does not fit into memory
                reason = " ".join(str(error).split())[:160]
                refused.append(f"{case.image}: cannot be predicted: {type(error).__name__}: {reason}")

    # 3. What became of all.
    kept, complete = len(cases) - len(todo), done + len(refused) == len(todo)
    if complete and refused and not done + kept:
        raise InputError(f"none of {len(cases)} files at '{source}' can be used; the first, {refused[0]}")
    _say(console, label_maps, refused)
    state = "predicted" if complete else "stopped, the same command goes on; so far"
    before = f", {kept} were there" if kept else ""
    _print(console, f"{state}: {done} images{before}, {len(refused)} cannot be used; {out}")
    return Outcome(complete, len(refused))


def _results(
    model: nn.Module,
    description: Mapping[str, Any],
    out: Path,
    places: Mapping[Path, str],
    *,
    overlap: float,
    batch_size: int,
) -> SegmentationFolder | TargetTable:
    if description["task"]["name"] == "classification":
        return TargetTable(model, description, out)
    return SegmentationFolder(model, description, out, places=places, overlap=overlap, batch_size=batch_size)


def _images(source: str, modality: str | None) -> tuple[list[Case], list[str]]:
    """List the images at `source`, and the label maps among them, which are none."""
    if not (home_expanded(source) / DATASET).is_file():
        return find_images(source, modality)
    # As cases of a task they would need one label map each; here it matters to nobody how many there are.
    files = find_files(Source(source, modality or ""))
    return [Case(without_suffix(file.path.name), file.path, file.modality, subject="") for file in files], []


def _places(cases: Sequence[Case], source: str) -> dict[Path, str]:
    """Return where the result of each image goes, without suffix: its place below `source`, or its name."""
    root, taken = home_expanded(source), set[str]()
    places = {}
    for case in cases:
        place = case.name
        if root.is_dir() and case.image.is_relative_to(root) and ".." not in case.image.relative_to(root).parts:
            place = without_suffix(case.image.relative_to(root).as_posix())
        places[case.image] = free_stem(place, taken)
    return places


def _told(case: Case, source: str, features: FeaturePyramid) -> Case:
    """Return the case with its modality; raises UnusableVolume where nothing tells it, or the model has not seen it."""
    name = case.modality or modality_of(case.image, source)
    trained = features.description["preprocessing"].get("modalities") or MODALITIES.names()
    seen = [known for known in trained if MODALITIES.get(known).channels in features.in_channels]
    if name not in seen:
        raise UnusableVolume(f"{name}, and the model takes {' and '.join(seen)}")
    return replace(case, modality=name)


def _say(console: Console, label_maps: Sequence[str], refused: Sequence[str]) -> None:
    for title, lines in (("label maps, left out", label_maps), ("cannot be used", refused)):
        if lines:
            _print(console, "\n  ".join([f"{title}: {len(lines)}", *lines]))


def _print(console: Console, text: str) -> None:
    console.say(text)
