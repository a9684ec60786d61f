import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from lightning_fabric.strategies.launchers import subprocess_script

from voxelwave.engine import runtime
from voxelwave.engine.loop import Trainer


@pytest.fixture
def first_rank(monkeypatch):
    """A first rank whose second one is killed, and all that it is ended with."""
    ended = []
    monkeypatch.setattr(runtime, "GRACE_S", 0.1)
    monkeypatch.setattr(runtime, "end_now", lambda message, code: ended.append((message, code)))
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", subprocess_script._launch_process_observer)
    second = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    fabric = SimpleNamespace(
        world_size=2,
        global_rank=0,
        strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[second])),
        ends_in_order=threading.Event(),
    )
    runtime._watch_ranks(fabric)
    second.wait()
    return fabric, f"rank 1 (process {second.pid}) was killed by SIGKILL", ended


def test_a_rank_that_waits_for_one_that_is_dead_is_ended_with_one_line(first_rank):
    _, said, ended = first_rank
    deadline = time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended == [(f"{said}, and this rank waits for it; go on with --resume", 2)]


def test_a_rank_that_stops_as_the_others_do_has_the_time_that_it_takes_to_save(first_rank):
    fabric, _, ended = first_rank
    fabric.device, fabric.all_reduce = "cpu", lambda votes, reduce_op: votes + 1
    assert Trainer._anyone(SimpleNamespace(fabric=fabric), False)
    time.sleep(1.0)
    assert not ended


def test_a_rank_that_has_noticed_it_has_the_time_that_it_takes_to_save(first_rank):
    fabric, said, ended = first_rank
    assert runtime.lost_rank(fabric, RuntimeError("gloo: Connection closed by peer")) == said
    time.sleep(1.0)  # the watch looks every half second
    assert not ended
