"""Workers that are killed, stopped, told to stop, or raise: what the run hears of it, and when."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torch.utils.data._utils import signal_handling

from voxelwave.data.batches.watched import WatchedLoader
from voxelwave.errors import ProcessFault


class Pids(Dataset):
    """Items that say which process made them; some of them never come, or are an error."""

    def __init__(self, hangs_at=None, raises_at=None):
        self.hangs_at, self.raises_at = hangs_at, raises_at

    def __getitem__(self, index):
        if index == self.hangs_at:
            time.sleep(60)
        if index == self.raises_at:
            raise RuntimeError("shape '[2, 3]' is invalid for input of size 5")
        return torch.tensor([index, os.getpid()])


def loader(dataset=None, *, timeout_s=600.0, length=40):
    options = {"batch_size": None, "sampler": range(length), "num_workers": 1, "prefetch_factor": 1}
    return WatchedLoader(dataset or Pids(), "scan {}.nii".format, timeout_s=timeout_s, **options)


def is_gone(pid, *, within_s=30.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("after_another", [False, True])
def test_a_worker_that_was_killed_is_told_with_its_file_where_a_batch_is_waited_for_and_nowhere_else(
    monkeypatch, after_another
):
    if after_another:  # loader of torch's own, whose handler of SIGCHLD stays
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        list(DataLoader(TensorDataset(torch.zeros(2)), num_workers=1))
    batches = iter(loader(Pids(hangs_at=2)))
    pid = int(next(batches)[1])
    next(batches)
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)  # half an optimiser step, in which nothing may be raised
    with pytest.raises(ProcessFault, match=rf"^data worker {pid} was killed by SIGKILL while it read scan 2.nii, most"):
        next(batches)


def test_a_worker_that_is_killed_while_it_is_waited_for_is_told_at_once():
    batches = iter(loader(Pids(hangs_at=2)))
    pid = int(next(batches)[1])
    next(batches)
    threading.Timer(0.2, os.kill, (pid, signal.SIGSEGV)).start()
    began = time.monotonic()
    with pytest.raises(ProcessFault, match=rf"{pid} was killed by SIGSEGV while it read scan 2.nii, look at that file"):
        next(batches)
    assert time.monotonic() - began < 30  # of the 60 for which the worker sleeps


def test_an_error_of_a_worker_is_told_as_what_it_is():
    with pytest.raises(RuntimeError, match="is invalid for input of size 5") as error:
        list(loader(Pids(raises_at=1)))
    assert not isinstance(error.value, ProcessFault)


class Nested(Pids):
    """Items that hold their tensor as batches of pairs do."""

    def __getitem__(self, index):
        return ((super().__getitem__(index), "scan"), "mri+mri")


@pytest.mark.parametrize("items", [Pids, Nested])
def test_that_there_is_no_room_in_shared_memory_is_told(monkeypatch, items):
    def full(storage, *_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    with pytest.raises(ProcessFault, match=r"^a batch finds no room in shared memory \(/dev/shm\): use fewer workers"):
        list(loader(items(), timeout_s=20.0))


@pytest.mark.parametrize("stopped", [True, False])
def test_a_worker_that_hangs_is_named_with_its_file(stopped):
    batches = iter(loader(Pids(hangs_at=2), timeout_s=0.5))
    pid = int(next(batches)[1])
    next(batches)
    time.sleep(0.1)
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ProcessFault, match=rf"no batch came for 0.5 s .*: data worker {pid} at scan 2.nii hangs"):
        next(batches)
    assert is_gone(pid)


def test_no_signal_that_asks_to_stop_reaches_a_worker():
    batches = iter(loader(length=8))
    pid = int(next(batches)[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU):
        subprocess.run(["kill", f"-{number}", str(pid)], check=True)  # by another process than its parent
    assert [int(batch[1]) for batch in batches] == [pid] * 7


def test_a_worker_ends_by_the_sigterm_of_its_parent():
    batches = iter(loader(Pids(hangs_at=2)))
    pid = int(next(batches)[1])
    next(batches)
    os.kill(pid, signal.SIGTERM)
    assert is_gone(pid)
    batches.close()


def test_workers_end_with_the_iteration():
    batches = iter(loader())
    pid = int(next(batches)[1])
    batches.close()
    assert is_gone(pid)


def test_workers_end_with_a_parent_that_is_killed():
    reading, writing = os.pipe()
    if not (parent := os.fork()):
        batches = iter(loader())
        os.write(writing, str(int(next(batches)[1])).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    pid = int(os.read(reading, 20))
    os.waitpid(parent, 0)
    assert is_gone(pid)
    os.close(reading)
    os.close(writing)
