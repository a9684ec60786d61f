"""Whether the subset run waits for its data, prepared and raw, and whether memory grows over thousands of batches.

python benchmarks/loader_speed.py [--rounds 3] [--steps 150] [--batches 5000] [--quick]

The loader is that of configs/pretrain/subset.yaml, on 50 + 50 generated heads of 96³ and the same heads prepared.
--quick takes small heads, few steps and few batches, and writes no result.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memory import family_mb, in_fresh_process
from reporting import publish, shown, spread, table, trend
from short_runs import MODALITIES, SUBSET, Run, train
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.prepare.run import Preparer
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.jobs.pretrain.config import load_config
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.synthesize.run import synthesize

NO_CACHE = "data.cached_volumes=0"
# The subset run keeps up to 100 raw volumes in each worker; of stored ones none are kept.
WAYS = {"store": ("store", []), "raw": ("heads", []), "raw, no cache": ("heads", [NO_CACHE])}
TRAINED = ("store", "raw")  # and held in memory over many batches
SKIPPED = 10  # first steps and batches: worker processes start, buffers are allocated, the queue is filled
SAMPLED_EVERY = 50
SETTLED_AFTER = 0.2  # of the batches: before it caches fill
TARGETS = {"loader_over_consumption": 3, "data_wait_share": 0.05, "growth": "none"}


def make_data(folder: Path, *, heads: int, size: int) -> None:
    """Write generated heads, and what `voxelwave prepare --spacing native` makes of them."""
    synthesize(folder / "heads", num_mri=heads, num_ct=heads, size=size, seed=0)
    quiet = Console(quiet=True)
    Preparer(folder / "store", preparation(spacing="native"), labels=False, console=quiet)([str(folder / "heads")])


def overrides_of(way: str, folder: Path) -> list[str]:
    """Return what makes the subset run read its volumes one way."""
    data, overrides = WAYS[way]
    # A prepared folder gives the volumes of a modality by itself, a raw one has a folder for each.
    places = {name: folder / data / ("" if data == "store" else name) for name in MODALITIES}
    sources = ", ".join(f"{{path: '{place}', modality: {name}}}" for name, place in places.items())
    return [f"data.sources=[{sources}]", "data.num_workers=2", "data.check_content=false", *overrides]


def training_data(way: str, folder: Path) -> TrainingData:
    """Return the data of the subset run."""
    config = load_config(SUBSET, overrides_of(way, folder))
    return TrainingData(config, rank=0, world_size=1, pin_memory=False, console=Console(quiet=True))


def loader_speed(way: str, folder: Path, batches: int) -> dict[str, float]:
    """Return the samples a second that two workers deliver to who does nothing else, in the first epoch and last."""
    data = training_data(way, folder)
    arrived, samples, began = [], [], time.perf_counter()
    for batch in data.batches(0, batches):
        arrived.append(time.perf_counter() - began)
        samples.append(len(batch.volume))

    def rate(first: int, last: int) -> float:
        return sum(samples[first + 1 : last + 1]) / (arrived[last] - arrived[first])

    epoch, end = data.steps_per_epoch, batches - 1
    return {
        "first_batch_s": arrived[0],
        "first_epoch_per_s": rate(SKIPPED, epoch - 1),
        "later_per_s": rate(max(SKIPPED, end - 2 * epoch), end),
    }


def consumption(run: Run) -> dict[str, Any]:
    """Return what a run's steps take and wait, without the first ones, and those apart."""
    sizes = run.config.training.batch_size
    durations = [sizes[record["modality"]] / record["volumes_per_second"] for record in run.records]
    waits = [record["data_wait_s"] for record in run.records]
    busy_s = math.fsum(durations[SKIPPED:]) - math.fsum(waits[SKIPPED:])
    samples = sum(sizes[record["modality"]] for record in run.records[SKIPPED:])
    return {
        "steps": len(run.records) - SKIPPED,
        "step_s": spread(durations[SKIPPED:]),
        "data_wait_s": spread(waits[SKIPPED:]),
        "longest_data_wait_s": max(waits[SKIPPED:]),
        "data_wait_share": math.fsum(waits[SKIPPED:]) / math.fsum(durations[SKIPPED:]),
        "consumed_per_s": samples / busy_s,
        "skipped": {"steps": SKIPPED, "step_s": durations[:SKIPPED], "data_wait_s": waits[:SKIPPED]},
    }


def memory_over(way: str, folder: str, batches: str) -> dict[str, Any]:
    """Load batches in this process, which has done nothing else, and sample what it and its workers have in memory."""
    at, seen = [], []
    for number, _ in enumerate(training_data(way, Path(folder)).batches(0, int(batches)), start=1):
        # At the last batch the workers are about to end.
        if number % SAMPLED_EVERY == 0 and number < int(batches):
            at.append(number)
            seen.append(family_mb())
    resident, proportional = zip(*seen, strict=True)
    return {"batch": at, "resident_mb": resident, "proportional_mb": proportional}


def growth(samples: dict[str, Any], batches: int) -> dict[str, float]:
    """Return by how much memory grew, all in all and once caches are full."""
    resident = samples["resident_mb"]
    settled = next(index for index, batch in enumerate(samples["batch"]) if batch > SETTLED_AFTER * batches)
    slope, error = trend(samples["batch"][settled:], resident[settled:])
    return {
        "slope_kb_per_batch": 1024 * slope,
        "slope_standard_error": 1024 * error,
        "total_growth_mb": resident[-1] - resident[0],
        "settled_growth_mb": resident[-1] - resident[settled],
        "first_mb": resident[0],
        "last_mb": resident[-1],
        "last_proportional_mb": samples["proportional_mb"][-1],
    }


def text_of(rates: dict[str, Any], runs: dict[str, Any], memory: dict[str, Any]) -> str:
    """Write the tables."""
    loaders, steps, grown = [], [], []
    for way, of in rates.items():
        cells = (shown(of[kind]) for kind in ("first_batch_s", "first_epoch_per_s", "later_per_s"))
        loaders.append([way, *cells, *(f"{ratio:.1f}" for ratio in of["over_consumption"])])
    for way, run in ((way, run) for way, repeats in runs.items() for run in repeats):
        cells = f"{run['consumed_per_s']:.1f} | {run['longest_data_wait_s']:.3f} | {run['data_wait_share']:.2%}"
        waited, taken = run["skipped"]["data_wait_s"], run["skipped"]["step_s"]
        start = f"{waited[0]:.2f} of {taken[0]:.2f} s | {sum(waited[1:]):.2f} of {sum(taken[1:]):.2f} s"
        steps.append([way, cells, start])
    for way, of in memory.items():
        slope = f"{of['slope_kb_per_batch']:.2f} ± {of['slope_standard_error']:.2f}"
        grown.append([way, slope, *(f"{of[kind]:.0f}" for kind in list(of)[2:])])
    heads = (
        "way | first batch, s | samples/s, first epoch | last two epochs | ratio, first epoch | last two epochs",
        f"way | samples/s but for waits | longest wait, s | waited (< 5 %) | step 1 waits | 2 to {SKIPPED} wait",
        f"way | kB a batch | growth, MB | after {SETTLED_AFTER:.0%} | first, MB | last, MB | last, proportional, MB",
    )
    return "\n\n".join(
        (
            "The loader alone, two workers; the ratio is to the largest consumption of the runs below (store: ≥ 3).",
            table(heads[0], loaders),
            f"The run without its first {SKIPPED} steps, which are told apart; repeat by repeat.",
            table(heads[1], steps),
            "Memory of main process and workers: resident counts shared pages for each, proportional once. The slope "
            "and its standard error, as of independent samples, are those of the resident memory after the first "
            f"{SETTLED_AFTER:.0%} of the batches.",
            table(heads[2], grown),
        )
    )


def main() -> None:
    """Measure speed, waiting and memory, and report them beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batches", type=int, default=5000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(memory_over(*arguments.task[1:])))
        return
    quick = arguments.quick
    rounds, steps, batches = (1, 20, 600) if quick else (arguments.rounds, arguments.steps, arguments.batches)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, heads=20 if quick else 50, size=48 if quick else 96)
        speeds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in TRAINED}
        for number in range(rounds):
            for way in WAYS:
                speeds[way].append(loader_speed(way, folder, batches=120 if quick else 500))
            for way in TRAINED:
                own = [*overrides_of(way, folder), f"training.max_steps={steps}"]
                runs[way].append(consumption(train(own, folder / "runs", f"{way}_{number}")))
        samples = {way: in_fresh_process(__file__, "memory", way, folder, batches) for way in TRAINED}
    consumed = max(run["consumed_per_s"] for repeats in runs.values() for run in repeats)
    rates: dict[str, Any] = {}
    for way, each in speeds.items():
        rates[way] = {kind: spread([of[kind] for of in each]) for kind in each[0]}
        delivered = (rates[way][kind]["median"] for kind in ("first_epoch_per_s", "later_per_s"))
        rates[way]["over_consumption"] = [rate / consumed for rate in delivered]
    memory = {way: growth(of, batches) for way, of in samples.items()}
    figures = {"loader": rates, "run": runs, "memory": memory, "memory_samples": samples, "targets": TARGETS}
    publish("loader_speed", figures, text_of(rates, runs, memory), quick=quick)


if __name__ == "__main__":
    main()
