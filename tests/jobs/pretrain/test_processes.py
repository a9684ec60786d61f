"""Runs in processes of their own: signals end them cleanly, and two train one model."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from support.pretraining_runs import QUIET, exact, named, records
from support.stopping import stop_after
from voxelwave import load_backbone, load_config
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.jobs.pretrain.run import pretrain

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_exits_cleanly_at_the_step_it_is_in(raw_config, tmp_path, number):
    raw_config["data"]["num_workers"] = 1
    raw_config["training"]["epochs"] = 40
    process = Process(raw_config, tmp_path)
    config = process.config
    deadline = time.monotonic() + 90
    while process.is_running() and time.monotonic() < deadline:
        if (config.run_folder() / "checkpoint_epoch_1.pth").exists():
            process.send(number)
            break
        time.sleep(0.02)
    code, printed = process.ended(within_s=60)
    assert code == 130, printed
    assert "go on with --resume" in printed
    assert "Traceback" not in printed
    step = load_checkpoint(config.run_folder() / "last.pth")["step"]
    assert 6 <= step < 240
    assert len(records(config)) == step
    undisturbed = named(raw_config, "undisturbed")
    pretrain(undisturbed, console=QUIET, should_stop=stop_after(step))
    assert exact(config) == exact(undisturbed)


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
    assert records(alone)[0]["loss"] == pytest.approx(records(config)[0]["loss"])
