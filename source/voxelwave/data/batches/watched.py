"""Batches from worker processes, of which one that is dead or hangs is named."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert, get_worker_info
from torch.utils.data._utils import signal_handling

from voxelwave.errors import InputError, ProcessFault
from voxelwave.ops.workers import Notes, begin_worker, how_it_ended, is_stuck, remedy, signals_held

WORKER_TIMEOUT_S = 600.0
MORE_MEMORY = "use fewer workers, smaller batches or caches, or give the container more (docker run --shm-size=8g)"


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
        collate_fn: Callable[[Any], Any] = default_convert,
        **options: Any,
    ) -> None:
        self._notes, self._timeout_s = Notes(num_workers), timeout_s
        super().__init__(
            _Noted(dataset, describe, self._notes) if num_workers else dataset,
            num_workers=num_workers,
            collate_fn=partial(_shared, collate_fn) if num_workers else collate_fn,
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
        started = sorted(set(multiprocessing.active_children()) - others, key=lambda worker: worker.pid or 0)
        workers = _Workers(started, self._notes, self._timeout_s)
        try:
            while True:
                with _told_of_children(lambda number, frame: workers.check(killed=True)), workers.awaited():
                    workers.check(killed=True)
                    try:
                        batch = next(batches)
                    except StopIteration:
                        return
                yield batch
        except InputError as error:
            # Worker processes send their traceback along in front of the message.
            raise type(error)(str(error).rpartition("InputError: ")[2].strip()) from None
        except (RuntimeError, OSError, EOFError) as error:
            workers.check(all_alive=True)
            if "shared memory" in str(error):
                raise ProcessFault(f"a batch finds no room in shared memory (/dev/shm): {MORE_MEMORY}") from None
            raise
        finally:
            del batches  # asks the workers to end, unless an error still holds it
            workers.close()


class _Workers:
    """The processes of a loader, which are killed where one of them is waited for too long."""

    def __init__(self, processes: Sequence[BaseProcess], notes: Notes, timeout_s: float) -> None:
        self._processes, self._notes, self._timeout_s = processes, notes, timeout_s
        self._deadline, self._too_late, self._closed = math.inf, "", threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Wait for no longer than the time-out."""
        self._deadline = time.monotonic() + self._timeout_s
        yield
        self._deadline = math.inf

    def check(self, *, all_alive: bool = False, killed: bool = False) -> None:
        """Raise ProcessFault where a worker is dead; one that ended as it should counts with `all_alive` alone.

        With `killed` one that ended by itself does not count: what it raised may still be on its way.
        """
        if self._too_late:
            raise ProcessFault(self._too_late) from None
        for number, worker in enumerate(self._processes):
            if (worker.exitcode and not (killed and worker.exitcode > 0)) or (
                all_alive and worker.exitcode is not None
            ):
                what = f"data worker {worker.pid} {how_it_ended(worker.exitcode)} while it read {self._notes[number]}"
                raise ProcessFault(f"{what}, {remedy(worker.exitcode, MORE_MEMORY)}") from None

    def close(self) -> None:
        """End those that did not when they were asked."""
        self._closed.set()
        for worker in self._processes:
            worker.kill()

    def _watch(self) -> None:
        # A thread: the main one may wait in a call of its own for what a worker does not send.
        while not self._closed.wait(min(1.0, self._timeout_s)):
            if time.monotonic() > self._deadline:
                self._too_late = f"no batch came for {self._timeout_s:g} s (run.timeout_s): {self._hanging()} hangs"
                self.close()

    def _hanging(self) -> str:
        named = {worker.pid or 0: f"{worker.pid} at {self._notes[at]}" for at, worker in enumerate(self._processes)}
        stuck = [text for pid, text in named.items() if is_stuck(pid)]
        return f"data worker {' or '.join(stuck or named.values())}"


class _Noted(Dataset[Any]):
    """The items of a dataset; a worker notes which it is at."""

    def __init__(self, dataset: Dataset[Any], describe: Callable[[Any], str], notes: Notes) -> None:
        self._dataset, self._describe, self._notes = dataset, describe, notes

    def __getitem__(self, index: Any) -> Any:
        if (worker := get_worker_info()) is not None:
            self._notes[worker.id] = self._describe(index)
        return self._dataset[index]


def _shared(collate: Callable[[Any], Any], samples: Any) -> Any:
    """Return a batch in shared memory: where there is no room, the thread that sends batches would tell nobody."""
    batch = collate(samples)
    for tensor in _tensors(batch):
        tensor.share_memory_()
    return batch


def _tensors(part: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, those of tuples within tuples, as of the views of pairs, among them."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, (tuple, list)):
        for inner in part:
            yield from _tensors(inner)


def _start_worker(_: int, *, parent: int) -> None:
    begin_worker(parent)


@contextmanager
def _told_of_children(handler: Any) -> Iterator[None]:
    """Have another handler of SIGCHLD meanwhile; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", "") == signal_handling.__name__:  # as of another loader, before this one
        before = signal.SIG_DFL
    signal.signal(signal.SIGCHLD, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
