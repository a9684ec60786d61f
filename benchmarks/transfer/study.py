"""What pretraining brings: fine-tuning and probing from each arm's checkpoint, beside training from scratch.

python benchmarks/transfer/study.py [--seeds 0 1 2] [--out FOLDER] [--workers N] [--only TEXT]

Every finished cell is a line of results/transfer.jsonl; called again, the study goes on. Volumes and runs are kept in
FOLDER. Real scans are looked for in $VOXELWAVE_REAL_DATA, else in ../shared/data, and left out where they are missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from arms import ARMS, CT_ONLY, FEATURES, MAE, MRI_ONLY, NOISE_ONLY, OURS, WITHOUT_INFONCE, equal_time, pretrained
from summary import FEW, LADDERS, Cell, write_report
from tasks import FULL_RATE, LR_SCALE, MORE_STEPS, SCRATCH, STEPS, TIME_OF_MAE, finetuned, probed
from volumes import LABELLED, Task, generated, probe_cases, real, real_volumes

RESULTS = Path(__file__).parent.parent / "results"
CELLS, STEPS_RECORD = RESULTS / "transfer.jsonl", RESULTS / "transfer_steps.json"
SEEDS = (0, 1, 2)
PROBES = {"probe mri": "mri", "probe ct": "ct"}
PROBED_ARMS = (OURS, WITHOUT_INFONCE, MAE, FEATURES)


@dataclass(frozen=True)
class Planned:
    """A cell to fill: an arm on a task with so many labelled volumes."""

    task: str
    arm: str
    labels: int
    seed: int
    steps: int = STEPS
    lr_scale: float = LR_SCALE

    @property
    def volumes(self) -> str:
        """Of which set the arm is pretrained."""
        return "real" if self.task.startswith("real") else "generated"


def plan(tasks: dict[str, Task], seed: int) -> Iterator[Planned]:
    """Yield the cells of a seed, in the order of what they tell."""
    for task in tasks.values():
        few_and_all = (*FEW, task.counts[-1])
        if task.name == "real MS lesions":
            continue
        if task.name == "generated mri":
            arms = dict.fromkeys((SCRATCH, OURS, MAE), task.counts) | dict.fromkeys((WITHOUT_INFONCE, FEATURES), FEW)
        elif task.name == "generated ct":
            arms = dict.fromkeys((SCRATCH, OURS, CT_ONLY), few_and_all) | dict.fromkeys((MRI_ONLY, MAE), FEW)
        elif task.modality == "ct":
            arms = dict.fromkeys((SCRATCH, OURS, CT_ONLY), task.counts)
        else:
            arms = dict.fromkeys((SCRATCH, OURS, MAE), task.counts)
        for arm, counts in arms.items():
            for count in counts:
                yield Planned(task.name, arm, count, seed)
    for probe in PROBES:
        for arm in PROBED_ARMS:
            yield Planned(probe, arm, 0, seed)


def plan_rest(tasks: dict[str, Task], seed: int) -> Iterator[Planned]:
    """Yield what else is asked: the rest of a ladder, MRI alone on MRI, noise, more steps, what no arm solves."""
    for arm in (SCRATCH, OURS, CT_ONLY):
        for count in tasks["generated ct"].counts:
            if count not in (*FEW, LABELLED):
                yield Planned("generated ct", arm, count, seed)
    for count in FEW:
        yield Planned("generated mri", MRI_ONLY, count, seed)
        for task in LADDERS:
            yield Planned(task, NOISE_ONLY, count, seed)
        yield Planned("generated mri", OURS, count, seed, TIME_OF_MAE)
    for arm in (SCRATCH, OURS):
        for count, lr_scale in ((FEW[-1], LR_SCALE), *((count, FULL_RATE) for count in FEW)):
            yield Planned("generated mri", arm, count, seed, MORE_STEPS, lr_scale)
    if "real MS lesions" in tasks:
        for arm in (SCRATCH, OURS, MAE):
            yield Planned("real MS lesions", arm, 1, seed)


def read_cells() -> list[Cell]:
    """Return the cells that are filled."""
    return [json.loads(line) for line in CELLS.read_text().splitlines()] if CELLS.exists() else []


def pretrain_arm(volumes: str, arm: str, seed: int, steps: dict[str, int], folder: Path) -> Path:
    """Pretrain an arm, unless it is done, and return its run folder."""
    return pretrained(arm, folder / volumes, folder / "runs" / volumes, steps=steps[arm], seed=seed)


def fill(planned: Planned, cases: Task | Path, steps: dict[str, int], folder: Path) -> Cell:
    """Score a cell; its arm is pretrained."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    checkpoint = None
    if planned.arm != SCRATCH:
        checkpoint = pretrain_arm(planned.volumes, planned.arm, planned.seed, steps, folder)
    if isinstance(cases, Task):
        settings = {"labels": planned.labels, "steps": planned.steps, "lr_scale": planned.lr_scale}
        found = finetuned(cases, checkpoint, **settings, seed=planned.seed, folder=folder)
    else:
        assert checkpoint is not None
        found = {"results": probed(checkpoint, cases, planned.seed, folder)}
    return {**asdict(planned), **found, "duration_s": round(time.perf_counter() - began, 1)}


def run(
    cells: Iterable[Planned],
    cases: dict[str, Task | Path],
    steps: dict[str, int],
    folder: Path,
    pool: ProcessPoolExecutor,
) -> None:
    """Fill the cells that are not, each when its arm is pretrained."""
    filled = {tuple(cell[key] for key in Planned.__dataclass_fields__) for cell in read_cells()}
    cells = [cell for cell in cells if tuple(asdict(cell).values()) not in filled]
    by_arm: dict[tuple[str, str, int], list[Planned]] = {}
    for cell in cells:
        by_arm.setdefault((cell.volumes, cell.arm, cell.seed), []).append(cell)
    pending: dict[Future[Path | Cell], tuple[str, str, int] | None] = {}

    def submit(arm: tuple[str, str, int]) -> None:
        pending.update((pool.submit(fill, cell, cases[cell.task], steps, folder), None) for cell in by_arm[arm])

    for arm in by_arm:
        if arm[1] != SCRATCH:
            pending[pool.submit(pretrain_arm, *arm, steps, folder)] = arm
    for arm in by_arm:
        if arm[1] == SCRATCH:
            submit(arm)
    while pending:
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            arm, result = pending.pop(future), future.result()
            if arm is not None:
                submit(arm)
            else:
                with CELLS.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(result) + "\n")
            print(result, flush=True)


def end_with_parent() -> None:
    """End a worker process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


def steps_of_arms(folder: Path) -> dict[str, int]:
    """Return how long each arm is pretrained; measured once, and kept beside the results."""
    if not STEPS_RECORD.exists():
        STEPS_RECORD.write_text(json.dumps(equal_time(ARMS, folder), indent=2) + "\n")
    steps: dict[str, int] = json.loads(STEPS_RECORD.read_text())
    return steps


def main() -> None:
    """Fill the cells that are missing, and write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("data/transfer"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--only", default="", help="fill only cells whose task/arm holds this text")
    arguments = parser.parse_args()
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

    tasks = generated(folder / "generated")
    if (source := real_volumes()) is not None:
        tasks |= real(source, folder / "real")
    cases = tasks | {probe: probe_cases(folder / "generated", modality) for probe, modality in PROBES.items()}
    steps = steps_of_arms(folder)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=end_with_parent) as pool:
        for part in (plan, plan_rest):
            for seed in arguments.seeds:
                chosen = [cell for cell in part(tasks, seed) if arguments.only in f"{cell.task}/{cell.arm}"]
                run(chosen, cases, steps, folder, pool)
    write_report(read_cells(), steps, RESULTS)


if __name__ == "__main__":
    main()
