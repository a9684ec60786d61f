"""What the benchmarks that train share: one pretraining run, and its records afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measuring import ended
from voxelwave.engine.run_log import read_metrics, summarise
from voxelwave.jobs.pretrain.config import Config, load_config
from voxelwave.jobs.pretrain.run import pretrain

SUBSET = Path(__file__).parent.parent / "configs" / "pretrain" / "subset.yaml"
GAUGES = ("effective_rank", "feature_std")
MODALITIES = ("mri", "ct")


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, and one record a step."""

    config: Config
    records: list[dict[str, Any]]

    @property
    def duration_s(self) -> float:
        """How long the steps took, waiting for data included, probes and checkpoints not."""
        sizes = self.config.training.batch_size
        return math.fsum(sizes[r["modality"]] / r["volumes_per_second"] for r in self.records)

    def epochs(self) -> list[dict[str, Any]]:
        """Return the mean of every logged value by epoch."""
        last = self.records[-1]["epoch"]
        return [summarise([r for r in self.records if r["epoch"] == number]) for number in range(1, last + 1)]

    def gauge(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps at which a gauge was taken, and its values."""
        taken = [(r["step"], r[name]) for r in self.records if name in r]
        return [step for step, _ in taken], [value for _, value in taken]

    def gauges_at_ends(self) -> dict[str, dict[str, float]]:
        """Return every gauge at its first and last probe."""
        ends = {}
        for name in (f"{gauge}_{modality}" for gauge in GAUGES for modality in MODALITIES):
            _, values = self.gauge(name)
            ends[name] = {"start": values[0], "end": values[-1]}
        return ends


def train(overrides: Sequence[str], folder: Path, name: str) -> Run:
    """Run the subset configuration with `overrides`; go on with, or take as it is, what `folder` holds of it."""
    config = load_config(SUBSET, [f"run.out_dir={folder}", f"run.name={name}", "run.tensorboard=false", *overrides])
    # The curves are drawn last.
    if not (config.run_folder() / "figures" / "losses.png").exists():
        ended(pretrain(config, resume=True))
    return Run(config, read_metrics(config.run_folder() / "metrics.jsonl"))


def over_baseline(records: Sequence[dict[str, Any]], modality: str) -> float:
    """Return the mean reconstruction error of a modality over the mean error of the trivial guess."""
    own = [record for record in records if record["modality"] == modality]
    return math.fsum(r["reconstruction"] for r in own) / math.fsum(r["baseline"] for r in own)


@contextmanager
def run_folder(given: Path | None) -> Iterator[Path]:
    """Use the folder that was given, or one that is gone afterwards."""
    if given is not None:
        yield given
        return
    with TemporaryDirectory() as temporary:
        yield Path(temporary)
