"""What a training run keeps of its speed beside other processes, and under a quota of cores.

python benchmarks/busy_machine.py [--steps 12]

Each figure is the demo's steps in a second, as `voxelwave pretrain` runs them, on two cores: alone and beside six
processes of one thread each, medians of `ROUNDS` in turn. The fair share of a run of two threads among six others is a
quarter of two cores. Each is taken with GOMP_SPINCOUNT as the command sets it, with it as OpenMP has it, and on one
thread. Then, where the user may make a control group (of version 1), a run that may take the time of one core, beside
one of one thread without a limit. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from reporting import publish, table

CONFIG = Path(__file__).parent.parent / "configs" / "pretrain" / "demo.yaml"
OTHERS, CORES = 6, 2
QUIET_STEPS, ROUNDS = 60, 3
SPIN = "GOMP_SPINCOUNT"
OWN, OPENMP, ONE = "as the command sets it", "as OpenMP has it", "one thread"
ARMS: dict[str, dict[str, str]] = {
    OWN: {},
    OPENMP: {SPIN: "30000000000"},  # libgomp's own count, so that the command does not set one
    ONE: {"OMP_NUM_THREADS": "1"},
}
WANTED = {"of_fair_share": 0.6, "lost_when_quiet": 0.02, "of_one_thread": 0.9}
GROUP = Path("/sys/fs/cgroup/cpu/voxelwave_one_core")
# In the group, and with it for the root of the hierarchy, as in a container.
LIMITED = (
    f"echo 100000 >{GROUP}/cpu.cfs_period_us && echo 100000 >{GROUP}/cpu.cfs_quota_us && echo $$ >{GROUP}/cgroup.procs "
    f'&& mount --bind {GROUP} {GROUP.parent} && exec "$@"'
)
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


def steps_a_second(
    heads: Path, out: Path, steps: int, environment: dict[str, str], before: tuple[str, ...] = ()
) -> float:
    """Return the median speed of the second half of a run, whose command stands behind what comes `before`."""
    settings = {
        **{"run.out_dir": out, "run.name": "run", "run.tensorboard": "false", "training.max_steps": steps},
        **{"data.sources.0.path": heads / "mri", "data.sources.1.path": heads / "ct", "data.num_workers": 0},
        **{"training.probe_every_steps": 100_000, "model.sparse": "gather"},
    }
    command: list[object] = [*before, sys.executable, "-m", "voxelwave", "pretrain", CONFIG]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment}, timeout=1800
    )
    records = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return median(record["volumes_per_second"] / 2 for record in records[steps // 2 :])


def of_one_core(heads: Path, folder: Path) -> float | None:
    """Return the speed under a limit of one core over that of one thread; None where no limit can be set."""
    try:
        GROUP.mkdir()
    except OSError as error:
        print(f"no limit: {GROUP}: {error.strerror}")
        return None
    try:
        limited = ("unshare", "-m", "sh", "-c", LIMITED, "sh")
        speeds: list[tuple[float, float]] = []
        for run in range(ROUNDS):
            under = steps_a_second(heads, folder / f"limited_{run}", QUIET_STEPS, {}, limited)
            speeds.append((under, steps_a_second(heads, folder / f"alone_{run}", QUIET_STEPS, ARMS[ONE])))
    finally:
        GROUP.rmdir()
    print("one core, one thread", speeds, flush=True)
    return median(under / alone for under, alone in speeds)


def main() -> None:
    """Measure, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="beside other processes")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    taken = defaultdict[tuple[str, int], list[float]](list)
    os.environ.pop(SPIN, None)
    with TemporaryDirectory() as folder:
        heads = Path(folder) / "heads"
        command = (sys.executable, "-m", "voxelwave", "synthesize", heads, "--num-mri", 4, "--num-ct", 4)
        subprocess.run(list(map(str, command)), check=True)
        # In turn, so that a machine that changes meanwhile changes both.
        for run, number in enumerate([0, OTHERS] * ROUNDS):
            for arm, (name, environment) in enumerate(ARMS.items()):
                with others(number):
                    out, steps = Path(folder) / f"{run}_{arm}", arguments.steps if number else QUIET_STEPS
                    taken[name, number].append(steps_a_second(heads, out, steps, environment))
                print(name, number, round(taken[name, number][-1], 3), flush=True)
        limited = of_one_core(heads, Path(folder))
    for (name, number), speeds in taken.items():
        found.setdefault(name, {})["busy" if number else "alone"] = median(speeds)
    fair = CORES / (CORES + OTHERS)
    rows = [
        [
            name,
            f"{of['alone']:.2f}",
            f"{of['busy']:.3f}",
            f"{of['busy'] / (fair * found[OPENMP]['alone']):.0%}",
        ]
        for name, of in found.items()
    ]
    own, openmp = found[OWN], found[OPENMP]
    figures = {
        "wanted": WANTED,
        "steps_a_second": found,
        "of_fair_share": own["busy"] / (fair * openmp["alone"]),
        "lost_when_quiet": 1 - own["alone"] / openmp["alone"],
        "of_one_thread": limited,
    }
    head = f"spinning | steps a second, alone | beside {OTHERS} processes | of the fair share"
    said = "not measured" if limited is None else f"{limited:.0%} of the steps of one thread"
    publish("busy_machine", figures, f"{table(head, rows)}\n\nWith the time of one core: {said}.", quick=False)


if __name__ == "__main__":
    main()
