"""What phantom runs reach on several seeds, as shipped and as `foqus-train`, how soon, and what a batch saves.

python benchmarks/phantom_runs.py [--seeds 11 12 13 14 15] [--ways reference] [--quick]

--quick takes small phantoms and few epochs, and writes no result; nor are any written with --ways, which are printed.
Nothing else may run meanwhile: times are told. Settings were chosen on other seeds: 0 to 2, 101 and 102.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from measuring import RESULTS, seconds
from reporting import publish, table
from voxelwave.data.kspace.phantoms import RandomPhantomDataset
from voxelwave.engine.run_log import read_metrics
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.phantom.config import load_phantom_config
from voxelwave.jobs.phantom.train import judged, train_phantoms
from voxelwave.ops.memory import keep_freed_memory

CONFIGS = Path(__file__).parent.parent / "configs" / "phantom"
WAYS = {
    "reference": ("reference", []),
    "reference, views of one scan": ("reference", ["data.rescan=false"]),
    "foqus-train: triplets, views of one scan": ("described", []),
    "foqus-train, views of two scans": ("described", ["data.rescan=true"]),
}
QUICK = ["data.train_length=64", "data.val_length=32", "data.image_size=48", "data.num_coils=2", "training.epochs=3"]
MEASURES = ("recall_at_1", "d_pos", "d_neg", "violations")
TARGETS = {"recall_at_1": 0.99, "d_pos": 0.3, "d_neg": 1.1, "violations": 0.01, "seconds_to_recall": 180}
BATCH = 16


def run(name: str, overrides: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """Train, and return what each epoch reached and when, and what the best one did."""
    config = load_phantom_config(
        CONFIGS / f"{name}.yaml", [*overrides, f"run.seed={seed}", f"run.out_dir={folder}", f"run.name=seed_{seed}"]
    )
    began, ended = time.perf_counter(), []

    def after_step() -> bool:
        ended.append(time.perf_counter() - began)
        return False

    train_phantoms(config, console=Console(quiet=True), should_stop=after_step)
    validated = [of for of in read_metrics(config.run_folder() / "metrics.jsonl") if "validation_loss" in of]
    epochs = [
        {"seconds": ended[of["step"]], **{name: of[f"validation_{name}"] for name in ("loss", *MEASURES)}}
        for of in validated
    ]
    reached = [of["seconds"] for of in epochs if of["recall_at_1"] >= TARGETS["recall_at_1"]]
    return {
        "seed": seed,
        "epochs": epochs,
        "best": epochs[min(range(len(validated)), key=lambda number: judged(validated[number]))],
        "seconds_to_recall": reached[0] if reached else None,
    }


def generator_speed(size: int) -> dict[str, float]:
    """Return how many times faster a batch comes than its items do one by one."""
    keep_freed_memory()
    torch.set_num_threads(1)

    def fresh() -> RandomPhantomDataset:
        return RandomPhantomDataset(BATCH, image_size=size)

    kept = fresh()

    def one_by_one(of: RandomPhantomDataset) -> list[object]:
        return [of[index] for index in range(BATCH)]

    return {
        "new": seconds(lambda: one_by_one(fresh())) / seconds(lambda: fresh().items(range(BATCH))),
        "kept": seconds(lambda: one_by_one(kept)) / seconds(lambda: kept.items(range(BATCH))),
        "kept_over_new_one_by_one": seconds(lambda: one_by_one(fresh())) / seconds(lambda: kept.items(range(BATCH))),
    }


def smoke_seconds(folder: Path) -> float:
    """Return how long the smoke run takes from the command line, with the start of the process."""
    command = [str(Path(sys.executable).with_name("voxelwave")), "phantom", "train", str(CONFIGS / "smoke.yaml")]
    began = time.perf_counter()
    subprocess.run([*command, "--set", f"run.out_dir={folder}"], check=True, capture_output=True)
    return time.perf_counter() - began


def text_of(runs: dict[str, list[dict[str, Any]]], generator: dict[str, float], smoke: float) -> str:
    """Write the tables."""
    rows = []
    for way, of in runs.items():
        for one in of:
            best, reached = one["best"], one["seconds_to_recall"]
            rows.append(
                [
                    *(way, one["seed"], f"{100 * best['recall_at_1']:.1f}", f"{best['d_pos']:.3f}"),
                    *(f"{best['d_neg']:.3f}", f"{100 * best['violations']:.1f}"),
                    *("–" if reached is None else f"{reached:.0f}", f"{one['epochs'][-1]['seconds']:.0f}"),
                ]
            )
    head = (
        "run | seed | Recall@1, % (≥ 99) | d_pos (≤ .3) | d_neg (≥ 1.1) | violations, % (≤ 1) | s to 99 % (≤ 180) | s"
    )
    return "\n\n".join(
        (
            "Validation phantoms at the epoch with the lowest loss; 800 and 200 phantoms, 128², 8 coils, two cores.",
            table(head, rows),
            f"A batch of {BATCH} over its items one by one (≥ 5 ×): {generator['new']:.1f} × where phantoms are new, "
            f"{generator['kept']:.1f} × where they were rendered before; a batch of phantoms rendered before over new "
            f"ones one by one, which is what training saves from its second epoch on, "
            f"{generator['kept_over_new_one_by_one']:.1f} ×. One thread. "
            f"The smoke run: {smoke:.0f} s from the command line (≤ 30 s).",
        )
    )


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw Recall@1 over time."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for number, (way, of) in enumerate(runs.items()):
        for one in of:
            times, recalls = zip(*((epoch["seconds"], epoch["recall_at_1"]) for epoch in one["epochs"]), strict=True)
            axis.plot(times, recalls, "o-", ms=3, color=f"C{number}", label=way if one is of[0] else None)
    axis.axhline(TARGETS["recall_at_1"], color="0.5", lw=0.8)
    axis.set(xlabel="seconds on two cores", ylabel="Recall@1, phantoms of validation", ylim=(0, 1.02))
    axis.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure, and report beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of new processes, as in `voxelwave phantom train`
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as temporary:
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            for number, way in enumerate(arguments.ways):
                name, overrides = WAYS[way]
                own = [*overrides, *QUICK] if arguments.quick else overrides
                folder = Path(temporary) / str(number)
                runs[way] = [pool.submit(run, name, own, seed, folder).result() for seed in arguments.seeds]
                print(way, [(one["best"], one["seconds_to_recall"]) for one in runs[way]], flush=True)
        if arguments.ways != list(WAYS):
            return
        smoke = smoke_seconds(Path(temporary) / "smoke")
    generator = generator_speed(48 if arguments.quick else 128)
    figures = {"runs": runs, "generator": generator, "smoke_seconds": smoke, "targets": TARGETS}
    publish("phantom_runs", figures, text_of(runs, generator, smoke), quick=arguments.quick)
    if not arguments.quick:
        draw(runs, RESULTS / "phantom_runs.png")


if __name__ == "__main__":
    main()
