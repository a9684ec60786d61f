"""Several commands in processes beside each other, each in a place that no other one has, such as a GPU."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from voxelwave.engine.signals import stop_on_signal
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.ops.threads import share_threads
from voxelwave.ops.workers import STOPPING

POLL_S = 0.2
LAST_CHARACTERS = 300  # of what a command printed, where it failed


class Place(NamedTuple):
    """Where one command runs at a time, and what its environment has beside that of this process."""

    name: str
    environment: Mapping[str, str]


def run_side_by_side(
    commands: Mapping[str, Sequence[str]],
    places: Sequence[Place],
    *,
    when_stopped: int,
    console: Console,
    logs: Path | None = None,
    ended: Callable[[str], None] = lambda name: None,
    goes_on: str = "the same command goes on with the others",
) -> bool:
    """Run each command by its name; True where all ended well, False where they were stopped.

    Args:
        when_stopped: the exit code of a command that was stopped.
        logs: a folder for what each prints, as `<name>.log`; without one, all print on the console.
        ended: is called with the name of each that ended well.
        goes_on: said where one failed, about the others.

    Raises InputError where one failed, once all others have ended.
    """
    share_threads(len(places))
    waiting, free = list(commands), list(places)
    running: dict[str, tuple[Place, subprocess.Popen[bytes]]] = {}
    failed, complete = list[str](), True
    with _no_longer_than_this(running), stop_on_signal() as signalled:
        while running or (waiting and not signalled.heard()):
            while waiting and free and not signalled.heard():
                name, place = waiting.pop(0), free.pop(0)
                console.say(f"{name}, {place.name}")
                with nullcontext() if logs is None else (logs / f"{name}.log").open("wb") as log:
                    running[name] = (
                        place,
                        subprocess.Popen(
                            commands[name], env=os.environ | dict(place.environment), stdout=log, stderr=log
                        ),
                    )
            if signalled.heard():
                # A signal that only this process heard is handed on; each of them saves and ends.
                _end(running.values())
            for name, (place, process) in list(running.items()):
                if (code := process.poll()) is None:
                    continue
                free.append(place)
                del running[name]
                # Within its first moments a command does not hear what asks to stop, and dies of it.
                stopped = code == when_stopped or (signalled.heard() and -code in STOPPING)
                complete &= not stopped
                if code == 0:
                    ended(name)
                elif not stopped:
                    failed.append(f"{name} ended with exit code {code}{_last_line(logs, name)}")
            time.sleep(POLL_S)
    if failed:
        raise InputError(f"{'; '.join(failed)}: see {logs or 'above'}; {goes_on}")
    return complete and not waiting


@contextmanager
def _no_longer_than_this(running: Mapping[str, tuple[Place, subprocess.Popen[bytes]]]) -> Iterator[None]:
    """Leave none at work, whatever ends this."""
    try:
        yield
    finally:
        _end(running.values())


def _end(running: Iterable[tuple[Place, subprocess.Popen[bytes]]]) -> None:
    processes = [process for _, process in running]
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _last_line(logs: Path | None, name: str) -> str:
    """Return the end of what a command printed, where that is in a file."""
    if logs is None:
        return ""
    with (logs / f"{name}.log").open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 4 * LAST_CHARACTERS))
        lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return f" ({lines[-1][-LAST_CHARACTERS:]})" if lines else ""
