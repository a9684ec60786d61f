"""Work on many files in several processes, which end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from voxelwave.errors import InputError, ProcessFault
from voxelwave.ops.cores import available_cores
from voxelwave.ops.texts import one_line
from voxelwave.ops.workers import MOST_WORKERS, begin_worker, how_it_ended, remedy, signals_held

HANGS_AFTER_S = 1800.0  # at one file
ENDS_WITHIN_S = 5.0

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


def checked_workers(workers: int | None) -> int:
    """Return the number of processes, one a core where None is given; raises InputError for one out of range."""
    if workers is not None and not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"--workers must be 1 to {MOST_WORKERS}, got {workers}; leave it out for one a core")
    return workers or min(available_cores(), MOST_WORKERS)


def run_all(
    work: Callable[[JobT], ResultT],
    jobs: Sequence[JobT],
    *,
    workers: int,
    should_stop: Callable[[], bool] = lambda: False,
    name: Callable[[JobT], str] = str,
    for_memory: str = "use fewer --workers",
    kept: str = "what is done is kept, ",
) -> Iterator[ResultT]:
    """Yield what `work` returns for each of `jobs`, as it is done; asked to stop, those that have begun alone.

    Args:
        name: what a job is called where its process is lost.
        for_memory: what to do where it is lost for lack of memory.
        kept: what is said then of the jobs that are done.

    Raises:
        ProcessFault: where a process was killed, or hangs.
    """
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            if should_stop():
                return
            yield work(job)
        return
    waiting = deque(jobs)
    end = f"{kept}the same command goes on"
    pool = [_Worker(work, for_memory, end) for _ in range(min(workers, len(jobs)))]
    try:
        while True:
            if should_stop():
                waiting.clear()
            for worker in pool:
                if waiting and not worker.is_busy:
                    worker.begin(waiting.popleft())
            busy = {worker.connection: worker for worker in pool if worker.is_busy}
            if not busy:
                break
            ready = wait(list(busy), timeout=0.5)
            for connection, worker in busy.items():
                if connection in ready:
                    result = worker.result(name)
                    if waiting and not should_stop():
                        worker.begin(waiting.popleft())
                    yield result
                else:
                    worker.check(name)
    finally:
        # They are idle, or what they are at is not wanted; what they write is whole or not there.
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join(ENDS_WITHIN_S)


class _Worker(Generic[JobT, ResultT]):
    """A process, and the job that it has."""

    def __init__(self, work: Callable[[JobT], ResultT], for_memory: str, end: str) -> None:
        self._for_memory, self._end = for_memory, end
        # Spawned, because the parent may hold threads (torch, a progress bar) that a fork would freeze.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
        # Python starts its tracker of resources with the first process, and afterwards lets SIGTERM through again.
        resource_tracker.ensure_running()
        with signals_held():
            self.process.start()
        theirs.close()
        self._jobs: list[JobT] = []
        self._began = 0.0

    @property
    def is_busy(self) -> bool:
        return bool(self._jobs)

    def begin(self, job: JobT) -> None:
        self._jobs, self._began = [job], time.monotonic()
        with suppress(OSError):  # that it is dead is told when its result is waited for
            self.connection.send(job)

    def result(self, name: Callable[[JobT], str]) -> ResultT:
        """Return what the work returned, raise what it raised, or ProcessFault where the process is dead."""
        try:
            done, result = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(ENDS_WITHIN_S)
            raise ProcessFault(
                f"process {self.process.pid} {how_it_ended(self.process.exitcode)} while it worked on "
                f"{name(self._jobs[0])}, {remedy(self.process.exitcode, self._for_memory)}; {self._end}"
            ) from None
        self._jobs = []
        if not done:
            raise result
        return result  # type: ignore[no-any-return]

    def check(self, name: Callable[[JobT], str]) -> None:
        """Raise ProcessFault where the process hangs."""
        if time.monotonic() - self._began > HANGS_AFTER_S:
            raise ProcessFault(
                f"process {self.process.pid} hangs, it has been at {name(self._jobs[0])} for {HANGS_AFTER_S:g} s: "
                f"see that the file can be read; {self._end}"
            )


def _serve(connection: Connection[Any, Any], work: Callable[[Any], Any], parent: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    begin_worker(parent)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            said = True, work(job)
        except Exception as error:  # raised again by the parent
            error.add_note(traceback.format_exc())
            said = False, error
        try:
            connection.send(said)
        except Exception as error:  # of what cannot be sent as it is
            connection.send((False, RuntimeError(f"{one_line(said[1])} ({one_line(error)})")))
