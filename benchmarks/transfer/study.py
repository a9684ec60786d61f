"""What pretraining brings: fine-tuning and probing from each arm's checkpoint, beside training from scratch.

python benchmarks/transfer/study.py [--seeds 0 1 2] [--out FOLDER] [--only TEXT]

Every finished cell is a line of results/transfer.jsonl; called again, the study goes on. Volumes and runs are kept in
FOLDER. Real scans are looked for in $VOXELWAVE_REAL_DATA, else in ../shared/data, and left out where they are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arms import (
    ARMS,
    CT_ONLY,
    DESCRIBED_INFONCE,
    FEATURES,
    GATED,
    MAE,
    MRI_ONLY,
    OURS,
    WITHOUT_INFONCE,
    equal_time,
    pretrained,
)
from summary import Cell, write_report
from tasks import FULL, LONG, SCRATCH, UNTRAINED, finetuned, probed
from volumes import Task, generated, probe_cases, real, real_volumes

RESULTS = Path(__file__).parent.parent / "results"
CELLS, STEPS_RECORD = RESULTS / "transfer.jsonl", RESULTS / "transfer_steps.json"
SEEDS = (0, 1, 2)
FEW = (1, 4)  # labelled volumes, where not every number is tried
MAIN_ARMS, ABLATIONS, CT_ARMS = (
    (SCRATCH, OURS, MAE),
    (WITHOUT_INFONCE, DESCRIBED_INFONCE, GATED, FEATURES),
    (SCRATCH, OURS, CT_ONLY),
)
PROBED_ARMS = (OURS, WITHOUT_INFONCE, DESCRIBED_INFONCE, GATED, MAE, FEATURES)
PROBE = "probe "


@dataclass(frozen=True)
class Planned:
    """A cell to fill: an arm on a task with so many labelled volumes."""

    task: str
    arm: str
    labels: int
    seed: int


def plan(tasks: dict[str, Task], seed: int) -> Iterator[Planned]:
    """Yield the fine-tuning cells of a seed."""
    for task in tasks.values():
        if task.name == "generated ct":
            arms = dict.fromkeys(CT_ARMS, task.counts) | dict.fromkeys((MRI_ONLY, MAE, WITHOUT_INFONCE), FEW)
        elif task.name == "generated mri":
            arms = dict.fromkeys(MAIN_ARMS, task.counts) | dict.fromkeys((*ABLATIONS, LONG, FULL), FEW)
        else:
            arms = dict.fromkeys((*MAIN_ARMS, *ABLATIONS), task.counts)
            if task.modality == "ct":
                arms |= {CT_ONLY: task.counts, MRI_ONLY: task.counts}
        for arm, counts in arms.items():
            for count in counts:
                yield Planned(task.name, arm, count, seed)


def read_cells() -> list[Cell]:
    """Return the cells that are filled."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


class Study:
    """Fills cells, each once."""

    def __init__(self, folder: Path, only: str) -> None:
        self.folder, self.only = folder, only
        self.sets = {"generated": generated(folder / "generated")}
        if (source := real_volumes()) is not None:
            self.sets["real"] = real(source, folder / "real")
        self.steps = self._steps()
        self._filled = {tuple(cell[key] for key in Planned.__dataclass_fields__) for cell in read_cells()}

    def __call__(self, seed: int) -> None:
        """Fill the cells of a seed."""
        for of_set, tasks in self.sets.items():
            for planned in plan(tasks, seed):
                self._finetune(of_set, tasks[planned.task], planned)
        for modality in ("mri", "ct"):
            cases = probe_cases(self.folder / "generated", modality)
            for arm in PROBED_ARMS:
                self._probe(Planned(PROBE + modality, arm, 0, seed), cases)

    def _finetune(self, of_set: str, task: Task, planned: Planned) -> None:
        def score() -> dict[str, Any]:
            checkpoint = self._checkpoint(of_set, planned.arm, planned.seed)
            return finetuned(task, planned.arm, checkpoint, planned.labels, planned.seed, self.folder)

        self._fill(planned, score)

    def _probe(self, planned: Planned, cases: Path) -> None:
        def score() -> dict[str, Any]:
            checkpoint = self._checkpoint("generated", planned.arm, planned.seed)
            assert checkpoint is not None
            return {"results": probed(checkpoint, cases, planned.seed, self.folder)}

        self._fill(planned, score)

    def _checkpoint(self, of_set: str, arm: str, seed: int) -> Path | None:
        if arm in UNTRAINED:
            return None
        data, runs = self.folder / of_set / "pretrain", self.folder / "runs" / of_set
        return pretrained(arm, data, runs, steps=self.steps[arm], seed=seed)

    def _fill(self, planned: Planned, score: Callable[[], dict[str, Any]]) -> None:
        if self.only not in f"{planned.task}/{planned.arm}" or tuple(asdict(planned).values()) in self._filled:
            return
        began = time.perf_counter()
        cell = {**asdict(planned), **score(), "duration_s": round(time.perf_counter() - began, 1)}
        with CELLS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(cell) + "\n")
        print(json.dumps(cell), flush=True)

    def _steps(self) -> dict[str, int]:
        """Return how long each arm is pretrained; measured once, and kept beside the results."""
        if not STEPS_RECORD.exists():
            STEPS_RECORD.write_text(json.dumps(equal_time(ARMS, self.folder), indent=2) + "\n")
        steps: dict[str, int] = json.loads(STEPS_RECORD.read_text())
        return steps


def main() -> None:
    """Fill the cells that are missing, and write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("data/transfer"))
    parser.add_argument("--only", default="", help="fill only cells whose task/arm holds this text")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    study = Study(arguments.out, arguments.only)
    for seed in arguments.seeds:
        study(seed)
    write_report(read_cells(), study.steps, RESULTS)


if __name__ == "__main__":
    main()
