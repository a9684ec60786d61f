"""Processes that work for another one: they end with it and by it, and not by the signals that ask it to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voxelwave.ops.loggers import printable

# Ctrl-C, Ctrl-\, `kill`, a closed terminal, what batch systems send before a job's time is over, a limit on CPU time.
STOPPING = tuple(getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "XCPU"))
SET_PARENT_DEATH_SIGNAL = 1  # of <sys/prctl.h>
NOTE_BYTES = 1024
MOST_WORKERS = 256  # a number beyond that is a slip, and would take all processes that the system has
LOOKS, BETWEEN_LOOKS_S = 20, 0.2


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back what asks to stop; a process that is started meanwhile never gets it, from its first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(parent: int) -> None:
    """Make this process a worker of `parent`: on one thread, deaf to all that asks to stop but the parent's SIGTERM.

    Batch systems, Ctrl-C and `kill` reach every process of a job: the parent ends the work, and with it the workers.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    # Where there is such a call (Linux), the system ends the worker with its parent, even one that is stopped.
    if (prctl := getattr(ctypes.CDLL(None), "prctl", None)) is not None:
        prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_obey, args=(parent,), daemon=True).start()
    import torch

    from voxelwave.ops.memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()


def _obey(parent: int) -> None:
    while True:
        said = signal.sigwaitinfo(STOPPING)
        if said.si_signo == signal.SIGTERM and said.si_pid == parent:
            os._exit(0)


def how_it_ended(code: int | None) -> str:
    """Say what an exit code tells, which is negative for a signal, as of a `Popen` or a `Process`."""
    if code is None:
        return "does not answer"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def is_stuck(pid: int) -> bool:
    """Tell whether a process is stopped, or in a call to the system that does not come back, where that is known.

    Whoever writes a file is in such a call for moments: only one that is so each time that it is looked at is stuck.
    """
    for look in range(LOOKS):
        if look:
            time.sleep(BETWEEN_LOOKS_S)
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TtD":
                return False
        except (OSError, IndexError):
            return False
    return True


def remedy(exitcode: int | None, for_memory: str) -> str:
    """Say what to do about a process that has ended; `for_memory` is for one that most likely had too little of it."""
    if exitcode in (-signal.SIGKILL, -signal.SIGBUS):
        return f"most often for lack of memory: {for_memory}"
    return "look at that file with `voxelwave inspect`"


class Notes:
    """What each of some workers is at. Whoever shares it can read that, of a worker that is dead, too."""

    def __init__(self, workers: int) -> None:
        from multiprocessing.sharedctypes import RawArray  # not above: the help needs none of it

        self._text = RawArray("c", workers * NOTE_BYTES)

    def __setitem__(self, worker: int, text: str) -> None:
        start = worker * NOTE_BYTES
        self._text[start : start + NOTE_BYTES] = printable(text).encode()[:NOTE_BYTES].ljust(NOTE_BYTES, b"\0")

    def __getitem__(self, worker: int) -> str:
        start = worker * NOTE_BYTES
        return bytes(self._text[start : start + NOTE_BYTES]).rstrip(b"\0").decode(errors="ignore")
