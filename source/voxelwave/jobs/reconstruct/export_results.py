"""Runs in the layout of folders that the recipe was described with: checkpoints by block and epoch, and losses."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxelwave.engine.run_log import METRICS, Record, read_metrics
from voxelwave.errors import InputError
from voxelwave.jobs.common.config_file import read_config
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import CONFIG
from voxelwave.jobs.reconstruct.config import check_reconstruction_config
from voxelwave.jobs.reconstruct.plan import ROUTER
from voxelwave.jobs.reconstruct.schedule import Block, blocks_of
from voxelwave.ops.files import replacing, write_text
from voxelwave.ops.tables import as_csv

CHECKPOINT = "checkpoint.pth"
EPOCH = re.compile(r"checkpoint_epoch_(\d+)\.pth")


def export_results(path: Path, out: Path, *, console: Console | None = None) -> list[Path]:
    """Write what the run at `path` left, or each run in that folder, and return the folders that were written.

    Of a run NAME these are `out/test_NAME/checkpoints/stepK/epoch-N/checkpoint.pth` for every epoch N that was kept, of
    block K, `loss_log/stepK/loss_log.npy` with the mean loss of each epoch of a block, and `steps.csv` with all that
    was recorded of each step. The router's is `test_cnn`, its only block the first.

    Raises InputError where there is no run, or for one that is damaged.
    """
    console = console or Console()
    runs = [path] if (path / METRICS).exists() else sorted(place.parent for place in path.glob(f"*/{METRICS}"))
    if not runs:
        raise InputError(f"{path} holds no run of `voxelwave reconstruct train`")
    return [_export(run, out, console) for run in runs]


def _export(run: Path, out: Path, console: Console) -> Path:
    folder = out / ("test_cnn" if run.name == ROUTER else f"test_{run.name}")
    records = read_metrics(run / METRICS)
    blocks = _blocks(run, records)
    kept = {int(found[1]): place for place in run.glob("*.pth") if (found := EPOCH.fullmatch(place.name))}
    for number, (first, last) in enumerate(blocks, start=1):
        step = f"step{number}"
        for epoch in sorted(kept.keys() & set(range(first, last + 1))):
            place = folder / "checkpoints" / step / f"epoch-{epoch}"
            place.mkdir(parents=True, exist_ok=True)
            with replacing(place / CHECKPOINT) as part:
                shutil.copyfile(kept[epoch], part)
        losses = _losses(records, first, last)
        if losses:
            place = folder / "loss_log" / step
            place.mkdir(parents=True, exist_ok=True)
            with replacing(place / "loss_log.npy") as part, part.open("wb") as file:
                np.save(file, np.array(losses))
    folder.mkdir(parents=True, exist_ok=True)  # a run that ended in its first step has left nothing else
    columns = list(dict.fromkeys(name for record in records for name in record))
    write_text(folder / "steps.csv", as_csv(columns, records))
    console.say(f"{run}: {len(kept)} checkpoints and {len(records)} steps, {folder}")
    return folder


def _blocks(run: Path, records: Sequence[Record]) -> list[tuple[int, int]]:
    """Return the first and the last epoch of each block."""
    if run.name == ROUTER:
        return [(1, max((record["epoch"] for record in records), default=1))]
    raw: Mapping[str, Any] = read_config(run / CONFIG)
    blocks: list[Block] = blocks_of(check_reconstruction_config(dict(raw), str(run / CONFIG)).blocks)
    return [(block.first, block.last) for block in blocks]


def _losses(records: Sequence[Record], first: int, last: int) -> list[float]:
    """Return the mean loss of each epoch that has records."""
    by_epoch: dict[int, list[float]] = {}
    for record in records:
        if first <= record["epoch"] <= last:
            by_epoch.setdefault(record["epoch"], []).append(record["loss"])
    return [math.fsum(of) / len(of) for of in by_epoch.values()]
