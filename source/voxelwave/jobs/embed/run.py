"""Embedding: a vector for every scan, by a pretrained backbone, in one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from voxelwave import __version__
from voxelwave.data.listing.cases import Case
from voxelwave.data.scaled import Scaled
from voxelwave.downstream.embedding import embed_volume, fitted_size
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.engine.runtime import best_device
from voxelwave.engine.signals import stop_on_signal
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.images import Images
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.embed.journal import Journal
from voxelwave.jobs.embed.table import check_table, write_table
from voxelwave.ops.files import locked


def embed(
    weights: str | Path,
    source: str,
    out: Path,
    *,
    modality: str | None = None,
    depth: int | None = None,
    console: Console | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Write the embedding of every scan at `source` to `out`; a call that was stopped, made again, goes on.

    Args:
        weights: what `load_backbone` takes.
        source: a file, a folder, a glob, a CSV list of files or of cases, or a folder that `voxelwave prepare` wrote.
        out: .parquet, .csv or .npz.
        modality: of every scan that does not say its own; None tells it as `voxelwave prepare` does.
        depth: the block after which features are taken; None is the last.

    Raises InputError where nothing can be embedded.
    """
    console = console or Console()
    # 1. What is asked for, before anything is computed.
    check_table(out)
    features = load_backbone(weights, depths=None if depth is None else [depth]).to(best_device()).eval()
    images, size = Images(source, modality), fitted_size(features)

    # 2. One scan after the other, and the table.
    assert features.report is not None
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out), stop_on_signal() as signalled:
        journal = Journal(out, f"{features.report.sha256} {features.depths[-1]}")

        def add(case: Case, scan: Scaled) -> None:
            journal.add(case, embed_volume(features, scan.volume, size=size).numpy())

        todo = images.without(journal.has)
        refused_before = len(images.refused)
        done = images.each(
            todo, ScanReader(features), add, verb="embedded", should_stop=lambda: signalled.asked or should_stop()
        )
        if done + len(images.refused) - refused_before < len(todo):
            console.say(f"stopped, the same command goes on; so far: {len(images.cases) - len(todo) + done} scans")
            return Outcome(complete=False, unusable=len(images.unusable))
        images.say(console)
        embedded, vectors = journal.embedded(images.cases)
        write_table(out, embedded, vectors, features, version=__version__)
        journal.end()

    counts = ", ".join(f"{count} {name}" for name, count in Counter(case.modality for case in embedded).items())
    console.say(f"{out}: {counts}, {features.channels[-1]} numbers each")
    return Outcome(unusable=len(images.unusable))
