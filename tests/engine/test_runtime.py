import platform
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.strategies.launchers import subprocess_script

from voxelwave.engine import runtime


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
    assert runtime.anyone(fabric, False)
    time.sleep(1.0)
    assert not ended


def test_a_rank_that_has_noticed_it_has_the_time_that_it_takes_to_save(first_rank):
    fabric, said, ended = first_rank
    assert runtime.lost_rank(fabric, RuntimeError("gloo: Connection closed by peer")) == said
    time.sleep(1.0)  # the watch looks every half second
    assert not ended


@pytest.mark.parametrize(
    ("device", "there", "units", "taken"),
    [
        ("cpu", True, True, "32-true"),
        ("auto", False, True, "32-true"),
        ("auto", True, True, "bf16-mixed"),
        ("auto", True, False, "32-true"),
    ],
)
def test_auto_is_bf16_where_a_gpu_has_units_for_it(monkeypatch, device, there, units, taken):
    asked = []

    class Asked(Exception):
        pass

    def fabric(**settings):
        asked.append(settings["precision"])
        raise Asked

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    monkeypatch.setattr(runtime, "_has_bf16_units", lambda: units)
    monkeypatch.setattr("lightning_fabric.Fabric", fabric)
    with pytest.raises(Asked):
        runtime.make_fabric(device=device, precision="auto")
    assert asked == [taken]


@pytest.mark.parametrize("factor", [4.5, 1.0])
def test_bf16_is_said_to_be_slow_on_a_cpu_where_it_is(monkeypatch, caplog, factor):
    monkeypatch.setattr(runtime, "_seconds_of_a_product", {torch.float32: 1.0, torch.bfloat16: factor}.__getitem__)
    runtime.make_fabric(device="cpu", precision="bf16")
    said = [record.getMessage() for record in caplog.records if "bf16" in record.getMessage()]
    assert len(said) == (factor > 1.2)
    assert all("takes 4.5 times as long as in fp32" in line for line in said)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps what is freed by its own rules")
def test_on_the_cpu_a_tensor_takes_the_memory_of_the_one_before():
    # In a process of its own: what the C library has learned once, it keeps.
    faults = """
import resource, torch
from voxelwave.engine.runtime import best_device
if best_device().type == "cpu":
    of = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    before = of()
    for _ in range(20):
        torch.ones(1 << 21) + 1
    print((of() - before) * resource.getpagesize())
"""
    said = subprocess.run([sys.executable, "-c", faults], capture_output=True, text=True, check=True).stdout
    if not said:
        pytest.skip("an accelerator computes here")
    assert int(said) < 20 * 2 * (4 << 21) / 2  # half of all that was taken
