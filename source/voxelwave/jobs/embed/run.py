"""Embedding: a vector for every scan, by a pretrained backbone, in one file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from voxelwave import __version__
from voxelwave.data.listing.cases import Case
from voxelwave.data.scaled import Scaled
from voxelwave.downstream.embedding import embed_volume, fitted_size
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.engine.runtime import best_device
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.images import Images
from voxelwave.jobs.common.outcome import Outcome
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
) -> Outcome:
    """Write the embedding of every scan at `source` to `out`.

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
    embedded: list[Case] = []
    vectors: list[Tensor] = []

    def add(case: Case, scan: Scaled) -> None:
        vectors.append(embed_volume(features, scan.volume, size=size))
        embedded.append(case)

    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        images.each(images.cases, ScanReader(features), add, verb="embedded")
        images.say(console)
        write_table(out, embedded, torch.stack(vectors).numpy(), features, version=__version__)

    counts = ", ".join(f"{count} {name}" for name, count in Counter(case.modality for case in embedded).items())
    console.say(f"{out}: {counts}, {features.channels[-1]} numbers each")
    return Outcome(unusable=len(images.unusable))
