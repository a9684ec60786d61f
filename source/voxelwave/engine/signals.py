"""Signals that ask to stop: as a request between two steps, and at once where there are no steps."""

from __future__ import annotations

import atexit
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

from voxelwave.ops.workers import STOPPING

STOPPED = 130  # as of a shell after Ctrl-C: what was to follow must not go on with half a run
REQUEST_S = 10.0  # after which a request is no longer waited for, but interrupts
LIMIT_S = 25.0  # after which a process that was told to stop ends, whatever it is at; batch systems kill after 30 s


class Stopped(BaseException):
    """A signal interrupts what is being done; no `except Exception` is to take it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


class StopRequest:
    """`asked` once a signal has arrived. It raises Stopped where nobody hears it, and at once for a second Ctrl-C."""

    def __init__(self, at_once: StopAtOnce | None) -> None:
        self.asked = False
        self._first = 0
        self.at_once = at_once

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.asked and number in (signal.SIGINT, signal.SIGALRM):
            raise Stopped(self._first)
        if not self.asked and number != signal.SIGALRM:
            self.asked, self._first = True, number
            signal.setitimer(signal.ITIMER_REAL, REQUEST_S)

    def heard(self) -> bool:
        """Return whether to stop; where it is so, whoever asks has the time that it takes to do it in order."""
        if self.asked:
            self._limit(math.inf)
        return self.asked

    def close(self) -> None:
        """Set the limit for what is left to do anew."""
        if self.asked:
            self._limit(LIMIT_S)

    def _limit(self, seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.at_once is not None:
            self.at_once.ends_at = time.monotonic() + seconds


class StopAtOnce:
    """Raises Stopped. A further signal is not to interrupt what tidies up, unless somebody presses Ctrl-C again.

    Attributes:
        exit_code: of a process that was stopped.
        ends_at: when the process ends whatever it is at, once a signal has arrived, by the monotonic clock.
        asked: whether a signal that asks to stop has arrived, whatever the main thread is at.
    """

    def __init__(self) -> None:
        self.exit_code = STOPPED
        self.asked = False
        self.ends_at = math.inf
        self._raised = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self._raised or number == signal.SIGINT:
            self._raised = True
            raise Stopped(number)

    def watch(self, reading: int) -> None:
        """Read the numbers of signals, which arrive whatever the main thread is at, and see to it that it ends."""
        told = 0
        while True:
            if select.select([reading], [], [], 1.0 if told else None)[0]:
                if not (numbers := os.read(reading, 64)):
                    return
                if not told and (asking := [number for number in numbers if number in STOPPING]):
                    told, self.ends_at, self.asked = asking[0], time.monotonic() + LIMIT_S, True
            if told and time.monotonic() > self.ends_at:
                end_now(f"stopped by {signal.Signals(told).name}, in the midst of its work", self.exit_code)


def end_now(message: str, code: int) -> None:
    """End the process in the state that it is in, with one line on stderr."""
    sys.stderr.write(f"voxelwave: {message}\n")
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def stopped_by_signals() -> Iterator[StopAtOnce]:
    """Let signals that ask to stop raise Stopped, for a whole command."""
    at_once = StopAtOnce()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watching = threading.Thread(target=at_once.watch, args=(reading,), daemon=True)
    watching.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        with _handling(at_once, STOPPING):
            yield at_once
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        watching.join()
        os.close(reading)


@cache
def deaf_at_exit() -> None:
    """Let no signal that asks to stop change the exit code of a program that is leaving already."""
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in STOPPING])


def exit_code_when_stopped(code: int) -> None:
    """Let the command that runs end with `code` where it is stopped."""
    at_once = signal.getsignal(signal.SIGTERM)
    if isinstance(at_once, StopAtOnce):
        at_once.exit_code = code


def code_of_stop() -> int | None:
    """Return the exit code of this process where a signal has asked it to stop, None where none has."""
    handler = signal.getsignal(signal.SIGTERM)
    at_once = handler.at_once if isinstance(handler, StopRequest) else handler
    return at_once.exit_code if isinstance(at_once, StopAtOnce) and at_once.asked else None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn signals into a request that is read between steps."""
    outer = signal.getsignal(signal.SIGTERM)
    request = StopRequest(outer if isinstance(outer, StopAtOnce) else None)
    try:
        with _handling(request, (*STOPPING, signal.SIGALRM)):
            yield request
    finally:
        request.close()


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], numbers: tuple[int, ...]) -> Iterator[None]:
    # What was ignored from the start stays so: `nohup`. A shell also ignores SIGINT for what it puts in the background,
    # but whoever sends that by hand means it.
    always = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handled = [of for of in numbers if of in always or signal.getsignal(of) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
