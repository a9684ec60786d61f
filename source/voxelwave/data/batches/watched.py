"""Batches from worker processes, of which one that is dead or hangs is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from voxelwave.errors import InputError, ProcessFault
from voxelwave.ops.workers import Notes, begin_worker, how_it_ended, remedy, signals_held

WORKER_TIMEOUT_S = 600.0


class WatchedLoader(DataLoader[Any]):
    """A DataLoader that says in one line what became of a worker process, and at what it was.

    Args:
        dataset: items by index.
        describe: says what is read for an index.
        timeout_s: how long a batch is waited for.
        options: of a DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        describe: Callable[[Any], str],
        *,
        num_workers: int,
        timeout_s: float = WORKER_TIMEOUT_S,
        **options: Any,
    ) -> None:
        self._notes = Notes(num_workers)
        super().__init__(
            _Noted(dataset, describe, self._notes) if num_workers else dataset,
            num_workers=num_workers,
            timeout=timeout_s if num_workers else 0,
            worker_init_fn=partial(_start_worker, parent=os.getpid()),
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the stub names the iterator's class
        """Yield the batches.

        Raises what a worker raised; InputError where a modality has no usable file, and ProcessFault where a worker
        was killed, or hangs.
        """
        if not self.num_workers:
            yield from super().__iter__()
            return
        others = set(multiprocessing.active_children())
        # torch's handler of SIGCHLD raises in whatever the main process is at, half an optimiser step or a checkpoint.
        # Here a dead worker is told where a batch is waited for, and nowhere else.
        with _told_of_children(signal.SIG_DFL), signals_held():
            batches = super().__iter__()
        workers = sorted(set(multiprocessing.active_children()) - others, key=lambda worker: worker.pid or 0)
        try:
            while True:
                with _told_of_children(lambda number, frame: self._check(workers)):
                    self._check(workers)
                    try:
                        batch = next(batches)
                    except StopIteration:
                        return
                yield batch
        except InputError as error:
            # Worker processes send their traceback along in front of the message.
            raise type(error)(str(error).rpartition("InputError: ")[2].strip()) from None
        except (RuntimeError, OSError, EOFError) as error:
            self._check(workers)
            if str(error).startswith("DataLoader timed out"):
                raise ProcessFault(self._hanging(workers)) from None
            raise
        finally:
            del batches  # asks the workers to end, unless an error still holds it
            for worker in workers:
                worker.kill()

    def _check(self, workers: Sequence[BaseProcess]) -> None:
        """Raise ProcessFault where a worker is dead."""
        for number, worker in enumerate(workers):
            if worker.exitcode:
                what = f"data worker {worker.pid} {how_it_ended(worker.exitcode)} while it read {self._notes[number]}"
                for_memory = "use fewer workers, smaller batches or caches, or give the container more"
                raise ProcessFault(f"{what}, {remedy(worker, f'{for_memory} (docker run --shm-size=8g)')}") from None

    def _hanging(self, workers: Sequence[BaseProcess]) -> str:
        named = ", ".join(f"{worker.pid} at {self._notes[number]}" for number, worker in enumerate(workers))
        return f"a data worker hangs, no batch came for {self.timeout:g} s (run.timeout_s); the workers: {named}"


class _Noted(Dataset[Any]):
    """The items of a dataset; a worker notes which it is at."""

    def __init__(self, dataset: Dataset[Any], describe: Callable[[Any], str], notes: Notes) -> None:
        self._dataset, self._describe, self._notes = dataset, describe, notes

    def __getitem__(self, index: Any) -> Any:
        if (worker := get_worker_info()) is not None:
            self._notes[worker.id] = self._describe(index)
        return self._dataset[index]


def _start_worker(_: int, *, parent: int) -> None:
    begin_worker(parent)


@contextmanager
def _told_of_children(handler: Any) -> Iterator[None]:
    """Have another handler of SIGCHLD meanwhile; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    signal.signal(signal.SIGCHLD, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
