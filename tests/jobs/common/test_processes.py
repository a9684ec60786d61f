import multiprocessing
import os
import signal

import pytest

from voxelwave.errors import InputError
from voxelwave.jobs.common import processes
from voxelwave.jobs.common.processes import run_all


@pytest.fixture
def forked(monkeypatch):
    """Processes that need not be able to import this file."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda method: fork)


def end(job):
    os.kill(os.getpid(), signal.SIGKILL)


def double(job):
    return 2 * job


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once(forked, workers):
    assert sorted(run_all(double, list(range(7)), workers=workers)) == list(range(0, 14, 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_asked_to_stop_what_has_not_begun_is_left(forked, workers):
    done = list(run_all(double, list(range(50)), workers=workers, should_stop=lambda: True))
    assert len(done) < 50


def test_a_process_that_was_killed_for_memory_is_said(forked):
    with pytest.raises(InputError, match=r"a process was killed, .*: use fewer --workers"):
        list(run_all(end, ["a"] * 3, workers=2))
