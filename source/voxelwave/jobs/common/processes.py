"""Work on many files in several processes, which end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from voxelwave.errors import InputError

PARENT_IS_CHECKED_EVERY_S = 2.0

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


def run_all(
    work: Callable[[JobT], ResultT],
    jobs: Sequence[JobT],
    *,
    workers: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[ResultT]:
    """Yield what `work` returns for each of `jobs`, as it is done; asked to stop, those that have begun alone.

    Raises:
        InputError: where a process was killed.
    """
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            if should_stop():
                return
            yield work(job)
        return
    # Spawned, because the parent may hold threads (torch, a progress bar) that a fork would freeze.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(os.getpid(),)
    ) as pool:
        pending: set[Future[ResultT]] = {pool.submit(work, job) for job in jobs}
        try:
            while pending:
                if should_stop():
                    pending = {future for future in pending if not future.cancel()}
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool:
            raise InputError(
                "a process was killed, most often for lack of memory: use fewer --workers; "
                "what is done is kept, the same command goes on"
            ) from None
        finally:
            for future in pending:
                future.cancel()


def _start_worker(parent: int) -> None:
    # Ctrl-C, `timeout` and `kill` reach every process; the parent says when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent was killed: nobody else would."""
    while os.getppid() == parent:
        time.sleep(PARENT_IS_CHECKED_EVERY_S)
    os._exit(1)
