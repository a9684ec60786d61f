"""`voxelwave prepare` with one and two processes, what each step of a volume takes, and what that makes for 6,244.

python benchmarks/prepare_speed.py [--volumes 80] [--rounds 3] [--quick]

--quick takes small heads and few of them, and writes no result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from heads import KINDS, make_heads
from memory import MB, forget_peak, in_fresh_process, peak_mb, resident_mb
from reporting import publish, shown, spread, table
from stopwatch import Steps
from voxelwave.data.listing.scans import Scan
from voxelwave.data.modalities.ct import CT
from voxelwave.data.modalities.mri import MRI
from voxelwave.jobs.prepare import preparation as preparing
from voxelwave.jobs.prepare import work as prepare_work
from voxelwave.jobs.prepare.settings import preparation
from voxelwave.jobs.prepare.work import ScanJob, picture_of, store_scan

WORKERS = (1, 2)
SPACINGS = {"as they are": "1.0", "resampled": "1.1"}
MRI_KIND, CT_KIND = "mri_1mm", "ct_fine"
COUNTS = {MRI_KIND: 5573, CT_KIND: 671}
PROCESSES = (1, 8, 16)
STEPS = {
    "read": ((Scan, "read_header"), (Scan, "read")),
    "hash": ((preparing, "content_hash"),),
    "resample": ((preparing, "resample"),),
    "bounds": ((MRI, "bounds"), (CT, "bounds")),
    "foreground": (
        (preparing, "foreground_box"),
        (preparing, "foreground_places"),
        (MRI, "foreground"),
        (CT, "foreground"),
    ),
    "pack": ((MRI, "pack"), (CT, "pack")),
    "write": ((prepare_work, "write_stored"),),
    "picture": ((prepare_work, "_picture"),),
}
TARGETS = {"two_over_one": 1.7}


def prepare_all(source: Path, out: Path, spacing: str, workers: int) -> dict[str, float]:
    """Call the command on a folder; when volumes were written tells what start and end take."""
    command = [Path(sys.executable).with_name("voxelwave"), "prepare", source, out, "--spacing", spacing]
    began = time.time()
    subprocess.run([*command, "--workers", str(workers)], check=True, capture_output=True)
    whole_s = time.time() - began
    written = sorted(file.stat().st_mtime - began for file in out.rglob("*.vxw"))
    per_volume_s = float(np.polyfit(range(len(written)), written, 1)[0])
    return {
        "whole_s": whole_s,
        "per_volume_s": per_volume_s,
        "first_written_s": written[0],
        "start_and_end_s": whole_s - per_volume_s * len(written),
    }


def pools(source: Path, rounds: int) -> dict[str, Any]:
    """Let one and two processes take turns; return the spread of each figure, and of their ratio by round."""
    measured: dict[str, Any] = {}
    for name, spacing in SPACINGS.items():
        taken: dict[int, list[dict[str, float]]] = {workers: [] for workers in WORKERS}
        for _ in range(rounds):
            for workers in WORKERS:
                with TemporaryDirectory() as out:
                    taken[workers].append(prepare_all(source, Path(out) / "store", spacing, workers))
        one, two = (taken[workers] for workers in WORKERS)
        of = {f"{w} {kind}": spread([run[kind] for run in each]) for w, each in taken.items() for kind in each[0]}
        for kind in ("whole_s", "per_volume_s"):
            of[f"ratio {kind}"] = spread([slow[kind] / fast[kind] for slow, fast in zip(one, two, strict=True)])
        measured[name] = of
    return measured


def prepare_one(source: str, out: str, repeats: str) -> dict[str, Any]:
    """Prepare one volume in this process as one of the pool would, first for its memory, then for the time of steps."""
    import monai.transforms  # noqa: F401  # seconds, once a process

    torch.set_num_threads(1)
    (path,) = Path(source).rglob("*.nii.gz")
    job, how, folder = ScanJob(Scan(path, Path(source)), "volume"), preparation(), Path(out)
    base = resident_mb()[0]
    forget_peak()
    row = store_scan(job, how=how, out=folder)
    assert row.accepted, row.reason
    figures = {"shape": row.shape, "stored_shape": row.stored_shape, "base_mb": base, "peak_mb": peak_mb() - base}
    steps = Steps()
    with ExitStack() as stack:
        for step, places in STEPS.items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, steps.timed(step, getattr(owner, name))))
        whole = steps.timed("other", store_scan)
        rounds = []
        for _ in range(int(repeats)):
            steps.seconds.clear()
            whole(job, how=how, out=folder)
            rounds.append(dict(steps.seconds))
    seconds = {step: statistics.median(of.get(step, 0.0) for of in rounds) for step in (*STEPS, "other")}
    stored = folder / row.output
    sizes = {"nii_gz_mb": path.stat().st_size / MB, "stored_mb": stored.stat().st_size / MB}
    sizes["picture_mb"] = picture_of(folder, stored).stat().st_size / MB
    return figures | sizes | {"seconds": seconds, "total_s": statistics.median(sum(of.values()) for of in rounds)}


def extrapolated(kinds: dict[str, Any], efficiency: float) -> dict[str, Any]:
    """Return disk and hours for the data sets of the description: one volume of each times their numbers."""
    disk_gb = {
        kind: count * (kinds[kind]["stored_mb"] + kinds[kind]["picture_mb"]) / 1024 for kind, count in COUNTS.items()
    }
    hours = {kind: count * kinds[kind]["total_s"] / 3600 for kind, count in COUNTS.items()}
    by_processes = {
        number: {"perfect": sum(hours.values()) / number, "as_two": sum(hours.values()) / max(1, number * efficiency)}
        for number in PROCESSES
    }
    return {"disk_gb": disk_gb, "hours_of_one_process": hours, "hours": by_processes}


def text_of(volumes: int, ratios: dict[str, Any], kinds: dict[str, Any], beyond: dict[str, Any]) -> str:
    """Write the tables."""
    figures = list(ratios["resampled"])
    rows = [[figure, *(shown(of[figure]) for of in ratios.values())] for figure in figures]
    steps = []
    for kind, of in kinds.items():
        cells = (f"{of['seconds'][step]:.2f}" for step in (*STEPS, "other"))
        sizes = f"{of['nii_gz_mb']:.1f} / {of['stored_mb']:.1f}"
        steps.append([kind, *cells, f"{of['total_s']:.2f}", f"{of['peak_mb']:.0f} + {of['base_mb']:.0f}", sizes])
    hours = [[number, *(f"{hours:.2f}" for hours in of.values())] for number, of in beyond["hours"].items()]
    disk = ", ".join(f"{COUNTS[kind]} as {kind}: {gb:.0f} GB" for kind, gb in beyond["disk_gb"].items())
    return "\n\n".join(
        (
            f"`voxelwave prepare` on {volumes} generated volumes of 256³ at 1 mm, left so or resampled to 1.1 mm, page "
            "cache warm. Start and end are what volumes at an even rate leave of the whole. One process resamples with "
            "all cores, each of two with one. Wanted: a ratio of at least 1.7.",
            table(f"processes, figure | {' | '.join(ratios)}", rows),
            "Seconds of one volume by step with one thread, and MB at the peak + before it:",
            table(f"kind | {' | '.join(STEPS)} | other | all | peak, MB | .nii.gz / store, MB", steps),
            "**Extrapolated, not measured**: one volume of each kind times their number, on disks that keep up. "
            f"Disk: {disk}. Hours if processes do not slow each other, or each as much as the other one did here:",
            table("processes | hours, undisturbed | hours, as disturbed as two", hours),
        )
    )


def main() -> None:
    """Measure pools and steps, and report them beside the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(prepare_one(*arguments.task[1:])))
        return
    quick = arguments.quick
    volumes, rounds = (8, 1) if quick else (arguments.volumes, arguments.rounds)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_heads(folder, volumes=volumes, size=96 if quick else 256)
        kinds = {kind: in_fresh_process(__file__, "one", folder / "kinds" / kind, folder / kind, 3) for kind in KINDS}
        ratios = pools(folder / "many", rounds)
    beyond = extrapolated(kinds, ratios["as they are"]["ratio per_volume_s"]["median"] / 2)
    figures = {"volumes": volumes, "pools": ratios, "kinds": kinds, "extrapolated": beyond, "targets": TARGETS}
    publish("prepare_speed", figures, text_of(volumes, ratios, kinds, beyond), quick=quick)


if __name__ == "__main__":
    main()
