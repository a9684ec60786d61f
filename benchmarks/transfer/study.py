"""What pretraining brings: frozen features of each arm beside random weights and raw voxels, and fine-tuning.

python benchmarks/transfer/study.py [--seeds 0 1 2 3 4] [--out FOLDER] [--workers N] [--choice] [--arms A B]

Every finished cell is a line of results/transfer_cells.jsonl.gz; called again, the study goes on. Heads and runs are
kept in FOLDER. Real scans are looked for in $VOXELWAVE_REAL_DATA, else in ../shared/data, and left out where they are
missing. --choice measures on other heads, prints, and keeps nothing: what is decided is decided there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from arms import ABLATIONS, ARMS, CROSS, CURRENT, CURRENT_PLAIN, ENCODER, equal_time, pretrained
from endpoints import RAW_CROP, RAW_SCAN, Heads, measure, measure_encoder, measure_raw
from scans import real_volumes, write_heads, write_real
from summary import RANDOM, RANDOM_PLAIN, score_lines, write_report

from voxelwave.downstream.embedding import untrained_twin
from voxelwave.downstream.load_backbone import load_backbone

RESULTS = Path(__file__).parents[1] / "results"
CELLS = RESULTS / "transfer_cells.jsonl.gz"
ONCE = (RAW_CROP, RAW_SCAN)  # no seed changes them
# Networks before training: of the architecture of an arm, whose preprocessing is that of all.
UNTRAINED = {RANDOM: CURRENT, RANDOM_PLAIN: CURRENT_PLAIN}
ENCODERS = tuple(f"{arm}{ENCODER}" for arm in (CURRENT, CROSS))
ABLATED = 2  # seeds of an ablation
Cell = dict[str, Any]
Result = TypeVar("Result")


@cache
def _heads(folder: Path, choice: bool) -> Heads:
    return Heads(folder, choice=choice)


def fill(arm: str, seed: int, steps: dict[str, int], folder: Path, choice: bool) -> Cell:
    """Pretrain an arm and measure it."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    source = None if choice else real_volumes()
    scans = write_real(source, folder / "real") if source else {}
    if arm.endswith(ENCODER):
        of = arm.removesuffix(ENCODER)
        run = pretrained(of, folder, folder / "runs", steps=steps[of], seed=seed)
        measured = measure_encoder(run, _heads(folder, choice))
    elif arm in ONCE:
        measured = measure_raw(_heads(folder, choice), arm)
    elif of := UNTRAINED.get(arm):
        run = pretrained(of, folder, folder / "runs", steps=steps[of], seed=0)
        twin = untrained_twin(load_backbone(run), seed=seed).eval()
        measured = measure(None, _heads(folder, choice), scans, untrained=twin)
    else:
        run = pretrained(arm, folder, folder / "runs", steps=steps[arm], seed=seed)
        measured = measure(run, _heads(folder, choice), scans, untrained=None)
    return {"arm": arm, "seed": seed, **measured, "duration_s": round(time.perf_counter() - began, 1)}


def read_cells() -> list[Cell]:
    """Return the cells that are filled."""
    if not CELLS.exists():
        return []
    with gzip.open(CELLS, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def end_with_parent() -> None:
    """End a worker process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


def results(pool: ProcessPoolExecutor, jobs: Sequence[Future[Result]]) -> Iterator[Result]:
    """Yield what each job returns when it is done; where one fails no other is begun."""
    try:
        for job in as_completed(jobs):
            yield job.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def main() -> None:
    """Fill the cells that are missing, and write tables and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--out", type=Path, default=Path("data/transfer"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    parser.add_argument("--arms", nargs="+", default=[*ONCE, *ARMS, *UNTRAINED, *ABLATIONS, *ENCODERS])
    parser.add_argument("--choice", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context, initializer=end_with_parent) as pool:
        write_heads(folder, pool)
        if (source := real_volumes()) is not None:
            write_real(source, folder / "real")
        steps = equal_time(folder, folder / "steps.json")
        filled = {(cell["arm"], cell["seed"]) for cell in read_cells()} if not arguments.choice else set()
        # Seed by seed; of one that is not asked of an arm there is nothing to do.
        asked = [
            (arm, seed)
            for seed in arguments.seeds
            for arm in arguments.arms
            if not (arm in ONCE and seed > 0) and not (arm in (*ABLATIONS, *ENCODERS) and seed >= ABLATED)
        ]
        jobs = [
            pool.submit(fill, arm, seed, steps, folder, arguments.choice)
            for arm, seed in asked
            if (arm, seed) not in filled
        ]
        for cell in results(pool, jobs):
            print("\n".join(score_lines(cell)), flush=True)
            if not arguments.choice:
                if cell["arm"] not in ONCE:
                    cell.pop("asked")  # the same for all
                with gzip.open(CELLS, "at", encoding="utf-8") as stream:
                    stream.write(json.dumps(cell, separators=(",", ":")) + "\n")
    if not arguments.choice:
        write_report(read_cells(), steps, RESULTS)


if __name__ == "__main__":
    main()
