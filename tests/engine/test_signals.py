import os
import signal
import sys
import time

import pytest

from support.command import process
from voxelwave.cli import main
from voxelwave.engine import signals
from voxelwave.engine.signals import Stopped, exit_code_when_stopped, stop_on_signal
from voxelwave.ops.workers import STOPPING


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """What this process was started to ignore, as below `nohup` or behind `&`, arrives here all the same."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python runs its handlers between two instructions


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_whatever_asks_to_stop_is_a_request_where_there_are_steps(number):
    before = signal.getsignal(number)
    with stop_on_signal() as request:
        assert not request.heard()
        send(number)
        assert request.heard()
    assert signal.getsignal(number) is before


def test_what_was_ignored_from_the_start_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_on_signal() as request:
            send(signal.SIGHUP)
            assert not request.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_interrupts_and_a_second_sigterm_does_not():
    with stop_on_signal() as request:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert request.asked
        with pytest.raises(Stopped, match="SIGTERM"):
            send(signal.SIGINT)


def test_a_request_that_nobody_hears_interrupts(monkeypatch):
    monkeypatch.setattr(signals, "REQUEST_S", 0.05)
    with stop_on_signal():
        send(signal.SIGUSR1)
        with pytest.raises(Stopped, match="SIGUSR1"):
            time.sleep(5)


def test_a_request_that_was_heard_is_given_its_time(monkeypatch):
    monkeypatch.setattr(signals, "REQUEST_S", 0.05)
    with stop_on_signal() as request:
        send(signal.SIGUSR1)
        assert request.heard()
        time.sleep(0.1)


def test_a_command_without_steps_ends_at_once_with_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(lambda: send(signal.SIGHUP))
    assert ended.value.code == 130
    assert capsys.readouterr().err == "voxelwave: stopped by SIGHUP\n"


def test_a_run_says_with_which_code_it_ends_where_it_is_stopped():
    def run():
        exit_code_when_stopped(99)
        send(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        main(run)
    assert ended.value.code == 99


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of the C library of Linux")
def test_a_command_in_a_call_that_does_not_come_back_ends_all_the_same():
    program = """
import ctypes, os, time
from voxelwave.cli import main
from voxelwave.engine import signals
signals.LIMIT_S = 0.2
mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
if not os.fork():
    time.sleep(0.5)
    os.kill(os.getppid(), 15)
    os._exit(0)
main(lambda: [library.pthread_mutex_lock(mutex) for _ in range(2)])
"""
    ended = process("-c", program)
    assert (ended.code, ended.err) == (130, "voxelwave: stopped by SIGTERM, in the midst of its work\n")


def test_a_program_that_is_leaving_ends_as_it_would():
    program = """
import atexit, os, signal
from voxelwave.cli import main
atexit.register(lambda: os.kill(os.getpid(), signal.SIGUSR1))  # runs after what is registered later
main(lambda: None)
"""
    assert process("-c", program).code == 0
