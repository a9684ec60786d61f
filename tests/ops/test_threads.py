import pytest

from voxelwave.ops import threads


@pytest.fixture
def machine(monkeypatch):
    """A machine of eight cores, of which the process has two, in a container, beside others."""

    def make(*, limit=None, running=0):
        monkeypatch.setattr(threads, "bound_cores", lambda: 2)
        monkeypatch.setattr(threads, "core_limit", lambda: limit)
        monkeypatch.setattr(threads, "running_threads", lambda: running)
        monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)

    return make


@pytest.mark.parametrize(("limit", "number"), [(0.5, "1"), (1.0, "1"), (1.5, "1"), (2.0, None), (None, None)])
def test_threads_that_a_quota_would_stop_are_not_made_and_it_is_said(machine, limit, number):
    machine(limit=limit)
    environment = {}
    said = threads.set_up_threads(environment)
    assert environment.get("OMP_NUM_THREADS") == number
    assert said == (number and f"2 cores, of which this container may use {limit:g}; threads: 1")


@pytest.mark.parametrize(("running", "spin"), [(0, "10000"), (6, "10000"), (7, "200")])
def test_threads_spin_long_where_there_is_a_core_for_everybody(machine, running, spin):
    machine(running=running)
    environment = {}
    assert threads.set_up_threads(environment) is None
    assert environment == {"GOMP_SPINCOUNT": spin}


@pytest.mark.parametrize(
    "own", [{"GOMP_SPINCOUNT": "5", "OMP_NUM_THREADS": "7"}, {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "7"}]
)
def test_what_the_user_has_set_is_kept(machine, own):
    machine(limit=1.0, running=9)
    environment = dict(own)
    assert threads.set_up_threads(environment) is None
    assert environment == own


def test_a_quota_is_judged_by_the_threads_that_it_leaves(machine):
    machine(limit=1.0, running=7)
    environment = {}
    threads.set_up_threads(environment)
    assert environment["GOMP_SPINCOUNT"] == "10000"  # one thread beside seven on eight cores


def test_processes_share_the_threads_of_a_quota_and_leave_what_the_user_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.share_threads(2) is None
    assert threads.os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.setenv("VOXELWAVE_THREADS", "5")
    assert threads.share_threads(2) == 2
    assert threads.os.environ["OMP_NUM_THREADS"] == "2"
    assert threads.share_threads(9) == 1


def test_other_threads_that_want_a_core_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "BETWEEN_LOOKS_S", 0)
    load = tmp_path / "loadavg"
    assert threads.running_threads(load) == 0
    load.write_text("0.10 9.00 8.00 4/93 12\n")
    assert threads.running_threads(load) == 3
    load.write_text("nonsense\n")
    assert threads.running_threads(load) == 0
