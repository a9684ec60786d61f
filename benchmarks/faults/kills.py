"""Every job killed, stopped and robbed of a process at random moments: what is lost, what is printed, how it ends.

python benchmarks/faults/kills.py [--kills 60] [--seed 0] [--work FOLDER] [--quick]

Each trial starts a job as a command of its own, sends a signal at a random moment of it, waits for its end, and calls
it again. What it then leaves is compared with what an unbroken call left: records of steps, weights, volumes, tables.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import RESULTS
from reporting import table
from voxelwave.engine.checkpoint import load_checkpoint

ENDS_WITHIN_S = 30.0
OF_THE_CLOCK = ("_per_second", "data_wait_s")
BACKBONE = {"name": "waveformer", "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
RUN = {"tensorboard": False, "seed": 3}
PRETRAIN = {
    "data": {"crop_size": [16] * 3, "view_share": [1.0, 1.0]},
    "model": {"backbone": BACKBONE, "sparse": "gather", "encoder_widths": [8, 12], "decoder_width": 8},
    "training": {
        "epochs": 40,
        "max_steps": 20,
        "learning_rate": 1e-3,
        "checkpoint_every_steps": 7,
        "checkpoint_every_epochs": 1000,
        "probe_every_steps": 10,
        "device": "cpu",
    },
}
FINETUNE = {
    "task": {
        "name": "segmentation",
        "classes": {"brain": ["6-11"], "bone": [1, 2, 3]},
        "other_labels": "background",
        "width": 4,
        "hausdorff": False,
    },
    "backbone": {"scratch": {key: BACKBONE[key] for key in BACKBONE if key != "name"}},
    "data": {"modality": "mri", "crop_size": [16] * 3, "spacing_mm": 19.0, "folds": 2},
    "training": {
        "max_steps": 12,
        "validate_every_steps": 6,
        "checkpoint_every_steps": 7,
        "learning_rate": 1e-3,
        "device": "cpu",
        "patience": None,
    },
}
PHANTOM = {
    "data": {"train_length": 40, "val_length": 8, "image_size": 32, "num_coils": 2, "num_workers": 1},
    "model": {"name": "mri_embedding", "embed_dim": 8, "widths": [8, 8]},
    "training": {"epochs": 4, "batch_size": 4, "device": "cpu"},
}
Digest = dict[str, str]


@dataclass(frozen=True)
class Job:
    """A command with its place `OUT`; `again` is what it is called with to go on; `digest` tells what it left."""

    name: str
    arguments: tuple[str, ...]
    digest: Callable[[Path], Digest]
    again: tuple[str, ...] = ()
    workers: bool = False

    def command(self, out: Path) -> list[str]:
        """Return the command that writes to `out`."""
        filled = [argument.replace("OUT", str(out)).replace("NAME", out.name) for argument in self.arguments]
        return [sys.executable, "-m", "voxelwave", *filled]


@dataclass
class Trial:
    """What became of a job to which something was done."""

    job: str
    done: str
    moment_s: float
    code: int
    ended_s: float
    hung: bool
    traceback: bool
    orphans: int
    expected: bool
    same: bool | None
    said: str


def sha(data: bytes) -> str:
    """Return a short checksum."""
    return hashlib.sha256(data).hexdigest()[:16]


def of_run(out: Path) -> Digest:
    """The records of all steps without what depends on the clock, and the weights."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [{name: value for name, value in line.items() if not name.endswith(OF_THE_CLOCK)} for line in lines]
    state = load_checkpoint(out / "last.pth")
    weights = b"".join(name.encode() + of.numpy().tobytes() for name, of in sorted(state["model"].items()))
    best = load_checkpoint(out / "best_model.pth") if (out / "best_model.pth").exists() else {}
    return {"records": sha(json.dumps(records).encode()), "weights": sha(weights), "best": str(best.get("step"))}


def of_files(out: Path) -> Digest:
    """The content of all files but pictures and pages, which name their folder; of compressed ones what is in them."""
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    kept = [path for path in files if not path.name.startswith(".lock") and path.suffix not in (".png", ".html")]
    return {
        str(path.relative_to(out)): sha(
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        )
        for path in kept
    }


def of_table(out: Path) -> Digest:
    """The arrays of an .npz, whose archive has the time in it."""
    with np.load(out, allow_pickle=False) as arrays:
        return {name: sha(arrays[name].tobytes()) for name in sorted(arrays.files)}


def of_json(out: Path) -> Digest:
    """A file of results."""
    return {"json": sha(out.read_bytes())}


def jobs(work: Path) -> list[Job]:
    """Write the configurations, and return the jobs."""
    heads = work / "heads"
    sources = [{"path": str(heads / name), "modality": name} for name in ("mri", "ct")]
    pretrain = {**PRETRAIN, "run": RUN, "data": {**PRETRAIN["data"], "sources": sources}}
    finetune = {**FINETUNE, "run": {**RUN, "figures": False}, "data": {**FINETUNE["data"], "cases": str(heads)}}
    for name, raw in {"pretrain": pretrain, "finetune": finetune, "phantom": {**PHANTOM, "run": RUN}}.items():
        (work / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    place = ("--set", f"run.out_dir={work / 'out'}", "--set", "run.name=NAME")
    again = ("--resume",)
    trained, weights, tuned = (
        str(work / "pretrain.yaml"),
        str(work / "out" / "pretrain"),
        str(work / "out" / "finetune"),
    )
    two = ("--set", "data.num_workers=2")
    return [
        Job("pretrain", ("pretrain", trained, *place, "--set", "data.num_workers=0"), of_run, again),
        Job("pretrain, 2 workers", ("pretrain", trained, *place, *two), of_run, again, workers=True),
        Job("finetune", ("finetune", str(work / "finetune.yaml"), *place), of_run, again),
        Job("phantom train", ("phantom", "train", str(work / "phantom.yaml"), *place), of_run, again, workers=True),
        Job("prepare", ("prepare", str(heads), "OUT", "--workers", "2"), of_files, workers=True),
        Job(
            "synthesize",
            ("synthesize", "OUT", "--num-mri", "5", "--num-ct", "5", "--size", "64", "--workers", "2"),
            of_files,
            workers=True,
        ),
        Job("predict", ("predict", tuned, str(heads / "mri"), "OUT"), of_files),
        Job("embed", ("embed", weights, str(heads / "mri"), "OUT.npz"), of_table),
        Job(
            "probe",
            ("probe", weights, str(heads), "--modality", "mri", "--targets", "lesion", "--out", "OUT.json"),
            of_json,
        ),
        Job("export", ("export", weights, "OUT", "--format", "bundle"), of_files),
    ]


def place_of(job: Job, out: Path) -> Path:
    """Return what the job writes when it is called with `out`."""
    suffixes = {"embed": ".npz", "probe": ".json"}
    return out.with_name(out.name + suffixes.get(job.name, ""))


def processes_below(pid: int) -> list[int]:
    """Return the processes that `pid` started, and theirs."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    parents = {int(of): int(parent) for of, parent, state in map(str.split, listed.splitlines()) if state[0] != "Z"}
    found = [pid]
    for one in found:
        found += [of for of, parent in parents.items() if parent == one]
    return found[1:]


def workers_below(pid: int) -> list[int]:
    """Return those of them that work, and do not keep count of what the others share."""
    return [of for of in processes_below(pid) if b"resource_tracker" not in Path(f"/proc/{of}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command at the head of a session, with no signal ignored."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    with log.open("ab") as output:
        return subprocess.Popen(
            ["env", "--default-signal", *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def call(command: Sequence[str], log: Path) -> tuple[int, float]:
    """Run a command to its end; return its exit code and the seconds that it took."""
    began = time.monotonic()
    return start(command, log).wait(), time.monotonic() - began


def told(log: Path) -> str:
    """Return all that a command printed."""
    return log.read_text(errors="replace")


def is_outside_the_command(text: str, moment_s: float) -> bool:
    """Tell by what a command printed whether Python was still starting, or leaving already."""
    return (moment_s < 3.0 and not text) or any(line.startswith("done: ") for line in text.splitlines())


class Trials:
    """The trials of all jobs, one after the other."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self._random = work, random.Random(seed)
        self.trials: list[Trial] = []
        self._reference: dict[str, tuple[Digest, float]] = {}
        (work / "out").mkdir(parents=True, exist_ok=True)
        made = ["synthesize", str(work / "heads"), "--num-mri", "8", "--num-ct", "8", "--size", "40", "--seed", "5"]
        call([sys.executable, "-m", "voxelwave", *made], work / "setup.log")
        self.jobs = jobs(work)

    def prepare(self) -> None:
        """Call every job once, unbroken."""
        for job in self.jobs:
            out = self.work / "out" / job.name.replace(", 2 workers", "_2").replace(" ", "_")
            log = self.work / "setup.log"
            code, seconds = call(job.command(out), log)
            assert code == 0, (job.name, told(log)[-2000:])
            self._reference[job.name] = (job.digest(place_of(job, out)), seconds)
            print(f"{job.name}: {seconds:.1f} s unbroken", flush=True)

    def run(self, job: Job, done: str, number: signal.Signals, whom: str, codes: Sequence[int], *more: str) -> None:
        """Do something to a job at a random moment, and call it again."""
        digest, seconds = self._reference[job.name]
        out = self.work / "out" / "trial"
        shutil.rmtree(out, ignore_errors=True)
        for left in (self.work / "out").glob("*trial*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        log = self.work / "trial.log"
        log.write_text("")
        process = start([*job.command(out), *more], log)
        # What is done to a worker is done soon after there is one.
        moment = 0.0 if whom == "worker" else self._random.uniform(0.02, 0.95) * seconds
        below = self._wait(process, moment, whom)
        for pid in below if whom == "worker" else [process.pid, *(below if whom == "all" else [])]:
            with suppress(ProcessLookupError):
                os.killpg(pid, number) if whom == "group" else os.kill(pid, number)
            if whom == "worker":
                break
        sent, everyone = time.monotonic(), below
        patience = ENDS_WITHIN_S + (seconds if number == signal.SIGSTOP else 0.0)
        hung = False
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            hung, code = True, 0
            everyone = [*processes_below(process.pid), *below]
            process.kill()
            process.wait()
        ended = time.monotonic() - sent
        while any(map(is_alive, below)) and time.monotonic() - sent < ENDS_WITHIN_S:
            time.sleep(0.1)
        orphans = [pid for pid in everyone if is_alive(pid)]
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        text = told(log)
        same = None
        again, _ = call([*job.command(out), *(job.again if code != 0 else ())], log) if code != 0 else (0, 0.0)
        if not more:
            # What an export has written is not written over: it was done, and is to be whole.
            refused = job.name == "export" and "exists already" in told(log)
            same = (again == 0 or refused) and job.digest(place_of(job, out)) == digest
        trial = Trial(
            *(job.name, done, round(moment, 2), code, round(ended, 1), hung),
            traceback="Traceback" in text,
            orphans=len(orphans),
            # A job may have ended before; what comes before Python runs the command, or after it is done, ends as the
            # system does it.
            expected=code in (*codes, 0) or (code == -number and is_outside_the_command(text, moment)),
            same=same,
            said=text.strip().splitlines()[-1][:300] if text.strip() else "",
        )
        self.trials.append(trial)
        print(json.dumps(asdict(trial)), flush=True)

    def _wait(self, process: subprocess.Popen[bytes], moment: float, whom: str) -> list[int]:
        """Wait for a moment, and where a worker is wanted for one after its start; return the processes below."""
        began = time.monotonic()
        while process.poll() is None:
            late = time.monotonic() - began > moment
            if late and (below := workers_below(process.pid) if whom == "worker" else []):
                time.sleep(self._random.uniform(0.0, 1.0))
                return below
            if late and whom != "worker":
                return processes_below(process.pid)
            time.sleep(0.02)
        return []


def plan(
    trials: Trials, kills: int
) -> Iterator[tuple[Job, str, signal.Signals, str, tuple[int, ...], tuple[str, ...]]]:
    """All that is done: kills, stops, and processes that are lost."""
    by_name = {job.name: job for job in trials.jobs}
    for number in range(kills):
        yield trials.jobs[number % len(trials.jobs)], "killed", signal.SIGKILL, "main", (-9,), ()
    for job in trials.jobs:
        whole = job.name in ("pretrain, 2 workers", "prepare")
        for sent in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)[: 3 if whole else 2]:
            for whom in ("main", "group", "all") if whole else ("all",):
                yield job, f"{sent.name} to {whom}", sent, whom, (130,), ()
    for job in trials.jobs:
        if job.workers:
            for _ in range(2):
                yield job, "worker killed", signal.SIGKILL, "worker", (2,), ()
    long = ("--set", "training.epochs=2000")
    ranks = ("--set", "training.devices=2", *long, "--set", "training.max_steps=2000")
    waits = (*long, "--set", "run.timeout_s=5")
    more = (*waits, "--set", "training.max_steps=2000")
    yield by_name["pretrain, 2 workers"], "worker stopped", signal.SIGSTOP, "worker", (2,), more
    yield by_name["phantom train"], "worker stopped", signal.SIGSTOP, "worker", (2,), waits
    for _ in range(2):
        yield by_name["pretrain"], "rank 1 killed", signal.SIGKILL, "worker", (2,), ranks
        yield by_name["pretrain"], "SIGTERM to all ranks", signal.SIGTERM, "all", (130,), ranks
    yield by_name["pretrain"], "rank 1 stopped", signal.SIGSTOP, "worker", (2,), (*ranks, "--set", "run.timeout_s=10")


def summary(trials: Sequence[Trial]) -> str:
    """Count, for every job and everything that was done to it."""
    rows = []
    for job, done in dict.fromkeys((trial.job, trial.done) for trial in trials):
        of = [trial for trial in trials if (trial.job, trial.done) == (job, done)]
        compared = [trial.same for trial in of if trial.same is not None]
        codes = ", ".join(map(str, sorted({trial.code for trial in of})))
        rows.append(
            (
                *(job, done, len(of), f"{sum(compared)} of {len(compared)}" if compared else "–"),
                *(sum(trial.traceback for trial in of), sum(trial.hung for trial in of)),
                *(sum(trial.orphans > 0 for trial in of), f"{max(trial.ended_s for trial in of):.1f}", codes),
                sum(not trial.expected for trial in of),
            )
        )
    head = (
        "job | done to it | trials | same as unbroken | tracebacks | not ended within 30 s | with orphans | "
        "longest end (s) | exit codes | wrong codes"
    )
    return table(head, rows)


def keep(trials: Sequence[Trial], seed: int, planned: int) -> None:
    """Write what is known so far: the trials take an hour on two cores."""
    folder = RESULTS / "faults"
    folder.mkdir(exist_ok=True)
    figures: dict[str, Any] = {"seed": seed, "planned": planned, "trials": [asdict(trial) for trial in trials]}
    (folder / "kills.json").write_text(json.dumps(figures, indent=1) + "\n")
    counts = [
        f"{len(trials)} of {planned} trials, in {sum(trial.done == 'killed' for trial in trials)} `kill -9` of a job",
        f"lost (another result than the unbroken call): {sum(trial.same is False for trial in trials)}",
        f"tracebacks: {sum(trial.traceback for trial in trials)}",
        f"not ended within 30 s: {sum(trial.hung for trial in trials)}",
        f"with processes that outlived it: {sum(trial.orphans > 0 for trial in trials)}",
        f"with another exit code than it should be: {sum(not trial.expected for trial in trials)}",
    ]
    listed = "\n".join(f"- {count}" for count in counts)
    text = f"# Jobs that were killed, stopped, and robbed of a process\n\n{listed}\n\n{summary(trials)}\n"
    (folder / "kills.md").write_text(text)


def main() -> None:
    """Run the trials in an order of chance, and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--quick", action="store_true", help="print what came of it, and keep nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        trials = Trials(given.work or Path(temporary), given.seed)
        trials.prepare()
        planned = list(plan(trials, given.kills))
        random.Random(given.seed).shuffle(planned)
        for job, done, number, whom, codes, more in planned:
            trials.run(job, done, number, whom, codes, *more)
            if not given.quick:
                keep(trials.trials, given.seed, len(planned))
        print(summary(trials.trials))


if __name__ == "__main__":
    main()
