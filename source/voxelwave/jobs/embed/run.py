"""Embedding: a vector for every scan, by a pretrained backbone, in one file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from voxelwave import __version__
from voxelwave.data.listing.cases import Case
from voxelwave.data.listing.images import find_images, modality_of
from voxelwave.downstream.embedding import embed_volume, fitted_size
from voxelwave.downstream.load_backbone import load_backbone
from voxelwave.downstream.scan_reader import ScanReader
from voxelwave.engine.runtime import best_device
from voxelwave.errors import InputError, UnusableVolume
from voxelwave.jobs.common.console import Console, tracked
from voxelwave.jobs.common.outcome import Outcome
from voxelwave.jobs.embed.table import check_table, write_table
from voxelwave.registry import MODALITIES


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
    reader, size = ScanReader(features), fitted_size(features)
    seen = [name for name in MODALITIES.names() if MODALITIES.get(name).channels in features.in_channels]
    cases, label_maps = find_images(source, modality)

    # 2. One scan after the other.
    embedded, vectors, refused = [], [], []
    for case in tracked(cases, "embedded scans"):
        try:
            told = case.modality or modality_of(case.image, source)
            if told not in seen:
                raise UnusableVolume(f"{told}, and the backbone takes {' and '.join(seen)}")
            vectors.append(embed_volume(features, reader(case.image, told).volume, size=size))
            embedded.append(Case(case.name, case.image, told, case.subject, targets=case.targets))
        except UnusableVolume as unusable:
            refused.append(f"{case.image}: {unusable}")

    # 3. The table, and what is not in it.
    for title, lines in (("label maps, left out", label_maps), ("cannot be used", refused)):
        if lines:
            console.say("\n  ".join([f"{title}: {len(lines)}", *lines]))
    if not embedded:
        raise InputError(f"none of the {len(cases)} files at '{source}' can be used")
    write_table(out, embedded, torch.stack(vectors).numpy(), features, version=__version__)
    counts = ", ".join(f"{count} {name}" for name, count in Counter(case.modality for case in embedded).items())
    console.say(f"{out}: {counts}, {features.channels[-1]} numbers each")
    return Outcome(unusable=len(refused))
