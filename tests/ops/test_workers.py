import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from voxelwave.ops import workers
from voxelwave.ops.workers import Notes, is_stuck


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Four looks, one right after the other."""
    monkeypatch.setattr(workers, "LOOKS", 4)
    monkeypatch.setattr(workers, "BETWEEN_LOOKS_S", 0.01)


def test_a_stopped_process_is_stuck_and_a_sleeping_or_a_dead_one_is_not():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not is_stuck(process.pid)
        process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while not is_stuck(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_stuck(process.pid)
    finally:
        process.kill()
        process.wait()
    assert not is_stuck(process.pid)


@pytest.mark.parametrize(("states", "stuck"), [("DDDD", True), ("DDSD", False), ("tTDD", True), ("RDDD", False)])
def test_a_process_that_waits_for_the_disk_for_a_moment_is_not_stuck(monkeypatch, states, stuck):
    seen = iter(states)
    monkeypatch.setattr(Path, "read_text", lambda self: f"7 (a) b) {next(seen)} 1 2")
    assert is_stuck(7) is stuck


def test_a_note_holds_a_name_that_is_no_utf8():
    notes = Notes(2)
    notes[1] = os.fsdecode(b"/data/M\xfcller_T1.nii.gz")
    assert notes[1] == "/data/M\\udcfcller_T1.nii.gz"
