import multiprocessing
import os
import signal
import sys
import time
from functools import partial

import pytest

from support.command import ROOT, process, voxelwave
from voxelwave.errors import InputError, ProcessFault
from voxelwave.jobs.common import processes
from voxelwave.jobs.common.processes import run_all


@pytest.fixture
def forked(monkeypatch):
    """Processes that need not be able to import this file."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda method: fork)


def end(job):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(job):
    time.sleep(60 if job == "b" else 0)


def refuse(job):
    if job == "a":
        raise InputError("a cannot be used")
    time.sleep(60)


def told_to_stop(job):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    time.sleep(0.05)
    return job


def killing_the_parent(writing, job):
    if job == "a":
        time.sleep(0.2)
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)
    os.write(writing, b"x")


def double(job):
    return 2 * job


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once(forked, workers):
    assert sorted(run_all(double, list(range(7)), workers=workers)) == list(range(0, 14, 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_asked_to_stop_what_has_not_begun_is_left(forked, workers):
    done = list(run_all(double, list(range(50)), workers=workers, should_stop=lambda: True))
    assert len(done) < 50


def test_a_process_that_was_killed_for_memory_is_said_with_its_file(forked):
    with pytest.raises(
        ProcessFault, match=r"^process \d+ was killed by SIGKILL while it worked on A, .*: use fewer --wo"
    ):
        list(run_all(end, ["a"] * 3, workers=2, name=str.upper))


def test_a_process_that_hangs_is_said_with_its_file_and_ended(forked, monkeypatch):
    monkeypatch.setattr(processes, "HANGS_AFTER_S", 0.2)
    with pytest.raises(ProcessFault, match=r"^process \d+ hangs, it has been at b for"):
        list(run_all(hang, ["a", "b"], workers=2))
    assert not multiprocessing.active_children()


def test_what_a_job_raises_is_raised_and_the_others_are_ended(forked):
    with pytest.raises(InputError, match="a cannot be used") as error:
        list(run_all(refuse, ["a", "b"], workers=2))
    assert "in refuse" in error.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_no_signal_that_asks_to_stop_reaches_a_process(forked):
    assert sorted(run_all(told_to_stop, [1, 2, 3], workers=2)) == [1, 2, 3]


def test_a_process_may_not_outlive_its_parent(forked):
    reading, writing = os.pipe()
    if not (parent := os.fork()):
        list(run_all(partial(killing_the_parent, writing), ["a", "b"], workers=2))
    os.waitpid(parent, 0)
    os.close(writing)
    assert os.read(reading, 9) == b""  # at once, and not when the jobs are done: whoever could write is gone
    os.close(reading)


@pytest.mark.skipif(sys.platform != "linux", reason="signals of a process are read below /proc")
def test_the_first_process_hears_nobody_from_its_first_moment_on():
    program = """
import signal
from pathlib import Path
from voxelwave.jobs.common.processes import _Worker
process = _Worker(len, "", "").process
status = Path(f"/proc/{process.pid}/status").read_text()
blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
process.kill()
print(all(blocked >> number - 1 & 1 for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
"""
    # In a process of its own, in which Python has started none before.
    assert process("-c", program).out == "True\n"


@pytest.mark.parametrize(
    "options",
    [
        ("pretrain", "configs/pretrain/demo.yaml", "--set", "data.num_workers=100000"),
        ("phantom", "train", "configs/phantom/smoke.yaml", "--set", "data.num_workers=100000"),
        ("reconstruct", "train", "configs/reconstruct/demo.yaml", "--set", "data.num_workers=100000"),
        ("prepare", "OUT", "OUT", "--workers", "100000"),
        ("synthesize", "OUT", "--workers", "0"),
    ],
    ids=lambda options: options[0],
)
def test_every_job_that_starts_processes_bounds_their_number(tmp_path, options):
    given = [ROOT / one if one.startswith("configs/") else one.replace("OUT", str(tmp_path)) for one in options]
    ended = voxelwave(*given)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "256" in ended.err
