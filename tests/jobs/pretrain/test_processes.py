"""Runs in processes of their own: signals end them cleanly, and two train one model."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from support.pretraining_runs import QUIET, exact, named, records
from support.stopping import stop_after
from voxelwave import load_backbone, load_config
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.jobs.pretrain.data import TrainingData
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.run import pretrain
from voxelwave.ops.seeding import torch_generator

pytestmark = pytest.mark.usefixtures("undrawn")


class Process:
    """`voxelwave pretrain`, at the head of a group of processes."""

    def __init__(self, raw, folder):
        file, self.printed = folder / "config.yaml", folder / "printed.txt"
        file.write_text(yaml.safe_dump(raw))
        self.config = load_config(file)
        with self.printed.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "voxelwave", "pretrain", file],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def send(self, number):
        """As Ctrl-C, timeout and batch systems do: the workers get it too."""
        os.killpg(self._process.pid, number)

    @property
    def pid(self):
        return self._process.pid

    def is_running(self):
        return self._process.poll() is None

    def ended(self, *, within_s):
        """Return the exit code and what was printed; fail with it where the run hangs."""
        try:
            code = self._process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()
            pytest.fail(f"the run did not end within {within_s} s; it printed:\n{self.printed.read_text()}")
        return code, self.printed.read_text()


def everyone(process):
    """The command and all processes below it, as a batch system knows them."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    found = [process.pid]
    for one in found:
        found += [pid for pid, parent in pairs if parent == one]
    return found


def when_there_is(path, process):
    """Wait for a file of a run."""
    deadline = time.monotonic() + 90
    while process.is_running() and time.monotonic() < deadline and not path.exists():
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "whom", "settings", "code"),
    [
        (signal.SIGINT, "group", {}, 130),
        (signal.SIGUSR1, "all", {"exit_code_when_stopped": 99}, 99),
    ],
    ids=["Ctrl-C", "before the time is over"],
)
def test_a_signal_saves_and_exits_cleanly_at_the_step_it_is_in(raw_config, tmp_path, number, whom, settings, code):
    raw_config["data"]["num_workers"] = 1
    raw_config["training"]["epochs"] = 40
    raw_config["run"] |= settings
    process = Process(raw_config, tmp_path)
    config = process.config
    when_there_is(config.run_folder() / "checkpoint_epoch_1.pth", process)
    if whom == "group":
        process.send(number)
    else:
        for pid in reversed(everyone(process)):
            os.kill(pid, number)
    ended, printed = process.ended(within_s=120)
    assert ended == code, printed
    assert "go on with --resume" in printed
    assert "Traceback" not in printed
    step = load_checkpoint(config.run_folder() / "last.pth")["step"]
    assert 6 <= step < 240
    assert len(records(config)) == step
    undisturbed = named(raw_config, "undisturbed")
    pretrain(undisturbed, console=QUIET, should_stop=stop_after(step))
    assert exact(config) == exact(undisturbed)


def test_a_rank_that_is_killed_ends_the_others_with_one_line_and_the_state_is_kept(raw_config, tmp_path):
    raw_config["training"] |= {"devices": 2, "device": "cpu", "epochs": 400}
    process = Process(raw_config, tmp_path)
    folder = process.config.run_folder()
    when_there_is(folder / "checkpoint_epoch_1.pth", process)
    _, other = everyone(process)
    os.kill(other, signal.SIGKILL)
    code, printed = process.ended(within_s=120)
    assert code == 2, printed
    (line,) = (line for line in printed.splitlines() if line.startswith("voxelwave: "))
    step = load_checkpoint(folder / "last.pth")["step"]
    said = f"rank 1 (process {other}) was killed by SIGKILL; saved at step {step}, go on with --resume"
    assert line == f"voxelwave: {said}"
    assert "Traceback" not in printed
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= step


def test_ranks_that_are_all_stopped_while_they_come_together_end_as_one_that_is_stopped(raw_config, tmp_path):
    raw_config["training"] |= {"devices": 2, "device": "cpu", "epochs": 400}
    process = Process(raw_config, tmp_path)
    deadline = time.monotonic() + 60
    while len(everyone(process)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in reversed(everyone(process)):
        os.kill(pid, signal.SIGTERM)
    code, printed = process.ended(within_s=120)
    assert code == 130, printed
    assert "Traceback" not in printed


def first_loss(config, *, rank):
    """What a rank computes of its first batch."""
    data = TrainingData(config, rank=rank, world_size=config.training.devices, pin_memory=False, console=QUIET)
    (batch,) = data.batches(0, 1)
    volume = data.augmented(batch, 0, torch.device("cpu"))
    with torch.no_grad():
        return float(build_pretrainer(config)(volume, torch_generator(config.run.seed, "mask", rank, 0)).loss)


def test_two_processes_train_one_model(raw_config, tmp_path):
    raw_config["training"] |= {"devices": 2, "device": "cpu", "epochs": 1}
    process = Process(raw_config, tmp_path)
    code, printed = process.ended(within_s=150)
    assert code == 0, printed
    assert "Traceback" not in printed
    config = process.config
    assert load_backbone(config.run_folder())
    # 5 MRI volumes in batches of 2 × 2: two steps of each modality show all of them.
    assert [record["modality"] for record in records(config)] == ["mri", "ct"] * 2
    # The first rank alone would draw the same batches and masks as a run of one process, but another mean gradient.
    alone = named(raw_config, "alone", devices=1, max_steps=1)
    pretrain(alone, console=QUIET)
    assert records(alone)[0]["grad_norm"] != records(config)[0]["grad_norm"]
    # Records are of the batch of both.
    assert records(alone)[0]["loss"] == pytest.approx(first_loss(alone, rank=0))
    of_both = (first_loss(config, rank=0) + first_loss(config, rank=1)) / 2
    assert records(config)[0]["loss"] == pytest.approx(of_both)
    assert of_both != pytest.approx(first_loss(config, rank=0))
