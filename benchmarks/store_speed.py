"""Random 96³ crops from the store, against whole .nii.gz files, mapped .nii files and MONAI's PersistentDataset.

VOXELWAVE_REAL_DATA=FOLDER python benchmarks/store_speed.py [--rounds 30] [--quick]

FOLDER (../shared/data if none is named) holds volumes/mr and volumes/ct; without it generated heads are measured alone.
The cold page cache takes Linux and root, and slows whatever else runs. --quick takes small heads and few rounds, and
writes no result.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch

from crop_ways import AT, FACTS, cropper, largest_difference, make_volumes
from memory import forget_peak, peak_mb, resident_mb
from reporting import publish, shown, spread, table
from voxelwave.ops.memory import keep_freed_memory

# A fast way is called several times in its turn, so that it does not pay for what a slow one pushed out of the caches.
PER_TURN = {"store": 10, "raw": 1, "mapped": 10, "persistent": 3}
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MB = 2**20
TARGETS = {"faster_than_raw": 20, "faster_than_persistent": 3, "disk_over_nii_gz": 1.5, "resident_mb": 50}
NOTES = """
Every way has a fresh process of its own with one thread, like a data worker; the processes take turns, and the first
turn does not count. Page cache warm. Every way crops the same grid: spacing and surroundings stay, which `voxelwave
prepare` would resample and cut off. A crop begins with opening the file and ends scaled. Ours lie around a voxel of the
foreground, as in training, where compression gains least; PersistentDataset's lie anywhere, and do not have to be
found. Of CT ours make three windows, PersistentDataset scales one channel. The mapped file knows bounds and foreground
beforehand, as the store does. Generated heads are int16, and .nii.gz is gzip -6, as converters write them. Memory: what
each process grew since before its first crop, the most that was seen between turns. "Anonymous" leaves out mapped
pages of files, which the system takes back as it needs; "peak" is within a crop."""
COLD_NOTES = """
The same with the page cache dropped before every crop, and the MB read from disk for it. What the host of a virtual
machine caches stays there."""

Processes = dict[str, ProcessPoolExecutor]


# What the processes do.

_cropper = cache(cropper)


def begin(place: Path, way: str) -> tuple[float, float]:
    """Import and open what a worker inherits from the process that looked at the files; return MB before any crop."""
    import blosc2  # noqa: F401

    # As in a data worker, whatever the way.
    torch.set_num_threads(1)
    keep_freed_memory()
    _cropper(place, way)
    gc.collect()
    forget_peak()
    return resident_mb()


def turn(place: Path, way: str, indices: range) -> tuple[list[float], tuple[float, float, float], float]:
    """Make crops; return the milliseconds of each, MB resident, anonymous and at the peak, and MB read from disk."""
    crop, taken = _cropper(place, way), []
    before = psutil.Process().io_counters().read_bytes
    for index in indices:
        began = time.perf_counter()
        crop(index)
        taken.append(1e3 * (time.perf_counter() - began))
    read = (psutil.Process().io_counters().read_bytes - before) / MB
    return taken, (*resident_mb(), peak_mb()), read


# What is asked of them.


def measure(place: Path, *, rounds: int) -> dict[str, Any]:
    """Measure everything of one volume."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {way: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn)) for way in AT}
        bases = {way: process.submit(begin, place, way).result() for way, process in processes.items()}
        turns = warm(processes, place, rounds + 1)
        figures = {"shape": json.loads((place / FACTS).read_text())["shape"]}
        figures |= times({way: of[1:] for way, of in turns.items()})
        figures["memory"] = {way: growth(bases[way], [memory for _, memory, _ in turns[way]]) for way in AT}
        if os.access(DROP_CACHES, os.W_OK):
            figures["cold"] = cold(processes, place, max(2, rounds // 3))
    files = {way: [place / at] if (place / at).is_file() else [*(place / at).iterdir()] for way, at in AT.items()}
    sizes = {way: sum(file.stat().st_size for file in of) for way, of in files.items()}
    figures["disk_over_nii_gz"] = {way: size / sizes["raw"] for way, size in sizes.items()}
    return figures | {"nii_gz_mb": sizes["raw"] / MB, "largest_difference": largest_difference(place)}


def warm(processes: Processes, place: Path, rounds: int) -> dict[str, list[Any]]:
    """Let the ways take turns."""
    turns: dict[str, list[Any]] = {way: [] for way in processes}
    for number in range(rounds):
        for way, process in processes.items():
            first = number * PER_TURN[way]
            turns[way].append(process.submit(turn, place, way, range(first, first + PER_TURN[way])).result())
    return turns


def times(turns: dict[str, list[Any]]) -> dict[str, Any]:
    """Return the times of crops; ratios are those of the medians, with the spread of those of single rounds."""
    taken = {way: [crops for crops, _, _ in of] for way, of in turns.items()}
    crop_ms = {way: spread([each for crops in of for each in crops]) for way, of in taken.items()}
    ratios = {}
    for way in (way for way in taken if way != "store"):
        pairs = zip(taken[way], taken["store"], strict=True)
        by_round = spread([statistics.median(other) / statistics.median(store) for other, store in pairs])
        ratios[way] = {**by_round, "median": crop_ms[way]["median"] / crop_ms["store"]["median"]}
    return {"crop_ms": crop_ms, "store_faster_than": ratios}


def growth(base: tuple[float, float], seen: list[tuple[float, float, float]]) -> dict[str, float]:
    """Return by how many MB a process grew."""
    (resident, anonymous), (residents, anonymouses, peaks) = base, zip(*seen, strict=True)
    return {
        "base_mb": resident,
        "first_turn_mb": residents[0] - resident,
        "last_turn_mb": residents[-1] - resident,
        "resident_mb": max(residents) - resident,
        "anonymous_mb": max(anonymouses) - anonymous,
        "peak_mb": max(peaks) - resident,
    }


def cold(processes: Processes, place: Path, rounds: int) -> dict[str, Any]:
    """Let the ways take turns at single crops with an empty page cache, and count what they read from the disk."""
    os.sync()
    turns: dict[str, list[Any]] = {way: [] for way in processes}
    for number in range(rounds):
        for way, process in processes.items():
            DROP_CACHES.write_text("1\n")
            turns[way].append(process.submit(turn, place, way, range(number, number + 1)).result())
    return {
        way: {"crop_ms": spread([crop for (crop,), _, _ in of]), "read_mb": spread([read for _, _, read in of])}
        for way, of in turns.items()
    }


def text_of(measured: dict[str, dict[str, Any]]) -> str:
    """Write the tables."""
    speed, cost, read = [], [], []
    for name, of in measured.items():
        ratios, disk, memory = of["store_faster_than"], of["disk_over_nii_gz"], of["memory"]
        title = f"{name}, {'×'.join(map(str, of['shape']))}"
        speed.append([title, *(shown(of["crop_ms"][way]) for way in AT), *(shown(ratios[way]) for way in ratios)])
        kinds = ("resident_mb", "anonymous_mb", "peak_mb")
        grown = (" / ".join(f"{memory[way][kind]:.0f}" for kind in kinds) for way in AT)
        cost.append([title, f"{of['nii_gz_mb']:.1f}", *(f"{disk[way]:.2f}" for way in AT if way != "raw"), *grown])
        if "cold" in of:
            cells = (f"{shown(of['cold'][way]['crop_ms'])}; {of['cold'][way]['read_mb']['median']:.1f}" for way in AT)
            read.append([title, *cells])
    speed_head = f"volume | {' | '.join(f'{way}, ms' for way in AT)} | raw / store (≥ 20) | mapped / store"
    disk_head = "volume | .nii.gz, MB | store, disk (≤ 1.5) | mapped, disk | persistent, disk"
    return "\n\n".join(
        (
            NOTES.strip(),
            table(f"{speed_head} | persistent / store (≥ 3)", speed),
            "Disk, over the .nii.gz; and MB that a process grows, resident / anonymous / peak (store: resident < 50):",
            table(f"{disk_head} | {' | '.join(f'{way}, MB' for way in AT)}", cost),
            COLD_NOTES.strip() if read else f"Cold page cache: not measured, {DROP_CACHES} cannot be written.",
            table(f"volume | {' | '.join(f'{way}, ms; MB' for way in AT)}", read) if read else "",
        )
    ).strip()


def main() -> None:
    """Measure every volume and report it beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    measured = {}
    with TemporaryDirectory() as folder:
        for name, place in make_volumes(Path(folder), size=128 if arguments.quick else 256).items():
            print(f"measuring {name}", flush=True)
            measured[name] = measure(place, rounds=3 if arguments.quick else arguments.rounds)
    publish("store_speed", {"volumes": measured, "targets": TARGETS}, text_of(measured), quick=arguments.quick)


if __name__ == "__main__":
    main()
