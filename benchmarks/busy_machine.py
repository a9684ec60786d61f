"""What a training run keeps of its speed beside other processes, and under a quota of cores.

python benchmarks/busy_machine.py [--steps 30]

Each figure is the demo's steps in a second, as `voxelwave pretrain` runs them, on two cores: alone, and beside six
processes of one thread each. The fair share of a run of two threads among six others is a quarter of two cores. Each
is taken with GOMP_SPINCOUNT as the command sets it, and as OpenMP has it. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from reporting import publish, table

CONFIG = Path(__file__).parent.parent / "configs" / "pretrain" / "demo.yaml"
OTHERS, CORES = 6, 2
SPIN = "GOMP_SPINCOUNT"
OPENMP = "30000000000"  # libgomp's own count, so that the command does not set one
WANTED = {"of_fair_share": 0.6, "lost_when_quiet": 0.02}
BUSY = "while True: pass"


@contextmanager
def others(number: int) -> Iterator[None]:
    """Keep as many processes busy."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def steps_a_second(heads: Path, out: Path, steps: int, environment: dict[str, str]) -> float:
    """Return the median speed of the second half of a run."""
    settings = {
        **{"run.out_dir": out, "run.name": "run", "run.tensorboard": "false", "training.max_steps": steps},
        **{"data.sources.0.path": heads / "mri", "data.sources.1.path": heads / "ct", "data.num_workers": 0},
        **{"training.probe_every_steps": 100_000, "model.sparse": "gather"},
    }
    command = [sys.executable, "-m", "voxelwave", "pretrain", CONFIG]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment}, timeout=1800
    )
    records = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return median(record["volumes_per_second"] / 2 for record in records[steps // 2 :])


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    os.environ.pop(SPIN, None)
    with TemporaryDirectory() as folder:
        heads = Path(folder) / "heads"
        command = (sys.executable, "-m", "voxelwave", "synthesize", heads, "--num-mri", 4, "--num-ct", 4)
        subprocess.run(list(map(str, command)), check=True)
        # In turn, so that a machine that changes meanwhile changes both.
        for number in (0, OTHERS):
            for name, environment in (("as the command sets it", {}), ("as OpenMP has it", {SPIN: OPENMP})):
                with others(number):
                    out = Path(folder) / f"{number}_{len(found.get(name, {}))}_{len(environment)}"
                    speed = steps_a_second(heads, out, arguments.steps, environment)
                found.setdefault(name, {})["alone" if not number else "busy"] = speed
                print(name, number, round(speed, 3), flush=True)
    fair = CORES / (CORES + OTHERS)
    rows = [
        [
            name,
            f"{of['alone']:.2f}",
            f"{of['busy']:.3f}",
            f"{of['busy'] / (fair * found['as OpenMP has it']['alone']):.0%}",
        ]
        for name, of in found.items()
    ]
    own, openmp = found["as the command sets it"], found["as OpenMP has it"]
    figures = {
        "wanted": WANTED,
        "steps_a_second": found,
        "of_fair_share": own["busy"] / (fair * openmp["alone"]),
        "lost_when_quiet": 1 - own["alone"] / openmp["alone"],
    }
    head = f"spinning | steps a second, alone | beside {OTHERS} processes | of the fair share"
    publish("busy_machine", figures, table(head, rows), quick=False)


if __name__ == "__main__":
    main()
