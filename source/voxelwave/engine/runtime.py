"""Device, precision and processes, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import torch

from voxelwave.engine.signals import code_of_stop, end_now
from voxelwave.errors import InputError, ProcessFault
from voxelwave.ops.loggers import logger
from voxelwave.ops.memory import keep_freed_memory
from voxelwave.ops.threads import share_threads
from voxelwave.ops.workers import how_it_ended, is_stuck

Precision = Literal["auto", "fp32", "bf16", "fp16"]
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # in the order in which Fabric believes them
RANK_TIMEOUT_S = 1200.0
FIRST_RANK = "VOXELWAVE_FIRST_RANK"  # tells the ranks that it starts its process
MATRIX_SIDE, SLOW = 512, 1.2  # of the matrices that tell whether bf16 is slow, and from which factor on it is
GRACE_S = 10.0  # for a rank to notice that another one was lost
_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(
    *, device: str = "auto", precision: Precision = "fp32", devices: int = 1, timeout_s: float = RANK_TIMEOUT_S
) -> Any:
    """Return a launched Fabric, whose ranks wait for each other for `timeout_s`.

    The precision "auto" is bf16 on a GPU that has units for it, else fp32. That bf16 is slow on a CPU is said.
    Raises InputError where the device is not there or cannot do the precision.
    """
    # Imported here: it takes a second, and the command line must not wait for it.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    if precision == "fp16" and on_cpu:
        raise InputError("training.precision=fp16 needs a GPU: use auto or fp32 on the CPU")
    if precision == "auto":
        precision = "fp32" if on_cpu or not _has_bf16_units() else "bf16"
    elif precision == "bf16" and on_cpu and launched_rank() == 0:
        _warn_of_slow_bf16()
    # Fabric announces its precision; an error is to stay one line.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # A step trains one modality, so that the other one's patch embedding and head get no gradient.
    if devices > 1 and "LOCAL_RANK" not in os.environ:
        os.environ[FIRST_RANK] = str(os.getpid())
        if (threads := share_threads(devices)) is not None:
            torch.set_num_threads(threads)
    ranks = DDPStrategy(find_unused_parameters=True, timeout=timedelta(seconds=timeout_s))
    strategy = "auto" if devices == 1 else ranks
    try:
        fabric = Fabric(accelerator=device, devices=devices, strategy=strategy, precision=_FABRIC_PRECISION[precision])
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"training.device={device}, precision={precision}, devices={devices} cannot run here: {reason}"
        ) from None
    fabric.ends_in_order = threading.Event()
    if devices > 1:
        _watch_ranks(fabric)
    try:
        fabric.launch()
    except BaseException as error:
        lost = lost_rank(fabric, error)
        end_ranks(fabric, hang=lost is not None)
        if lost is None:
            raise
        raise ProcessFault(f"the processes of training.devices={devices} did not come together: {lost}") from None
    keep_freed_memory()
    return fabric


def _has_bf16_units() -> bool:
    # Other accelerators than CUDA's do not say.
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _warn_of_slow_bf16() -> None:
    """Say how much longer than in fp32 a product of matrices takes in bf16, where it does: most CPUs emulate it."""
    taken = {dtype: _seconds_of_a_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    factor = taken[torch.bfloat16] / taken[torch.float32]
    if factor > SLOW:
        logger.warning(
            "note: in bf16 this CPU takes %.1f times as long as in fp32 (a product of matrices of %d²): "
            "training.precision=auto takes what is fast here",
            *(factor, MATRIX_SIDE),
        )


def _seconds_of_a_product(dtype: torch.dtype) -> float:
    matrix = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=dtype)
    durations = []
    for _ in range(4):  # the first to warm up
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        durations.append(time.perf_counter() - began)
    return min(durations[1:])


def launched_rank() -> int:
    """Return which process of a run this is, by what Fabric, torchrun or Slurm told it when it was started."""
    return int(next((os.environ[name] for name in RANKS if name in os.environ), "0"))


def lost_rank(fabric: Any, error: BaseException) -> str | None:
    """Say which rank is gone or hangs where that is what `error` comes of, None where it is anything else."""
    text = str(error).lower()
    if fabric.world_size == 1 or not any(of in text for of in ("gloo", "nccl", "connection", "timed out", "timeout")):
        return None
    ends_in_order(fabric)
    # The system may tell of the end of a connection before it tells of the end of a process.
    for _ in range(20):
        if said := _ended_rank(fabric):
            return said
        time.sleep(0.05)
    stopped = [f"rank {rank} (process {pid})" for rank, pid in _other_ranks(fabric) if is_stuck(pid)]
    return f"{stopped[0] if stopped else 'another rank'} does not answer"


def anyone(fabric: Any, asked: bool) -> bool:
    """True on every rank where it is on one: ranks must stop at the same step."""
    if fabric.world_size == 1:
        return asked
    votes = fabric.all_reduce(torch.tensor(float(asked), device=fabric.device), reduce_op="sum")
    if votes > 0:
        ends_in_order(fabric)  # the others are gone sooner than the one that saves
    return bool(votes > 0)


def mean_over_ranks(fabric: Any, logs: dict[str, float]) -> dict[str, float]:
    """Return the logs of the batch of all ranks."""
    if fabric.world_size == 1:
        return logs
    values = torch.tensor(list(logs.values()), dtype=torch.float64, device=fabric.device)
    return dict(zip(logs, fabric.all_reduce(values, reduce_op="mean").tolist(), strict=True))


def ends_in_order(fabric: Any) -> None:
    """Tell the watch over the ranks that this one is about to save and end, however long that takes."""
    if fabric.world_size > 1:
        fabric.ends_in_order.set()


def end_ranks(fabric: Any, *, hang: bool = False) -> None:
    """End the ranks that this process has started, or, where it hangs on the first one, that: nobody else would."""
    for process in _started(fabric):
        process.kill()
    if hang and _was_started(fabric) and is_stuck(os.getppid()):
        os.kill(os.getppid(), signal.SIGKILL)


def is_told_by_first_rank(fabric: Any) -> bool:
    """Whether another rank says on this terminal why the ranks end."""
    return _was_started(fabric) and _ended_rank(fabric) is None and not is_stuck(os.getppid())


def _started(fabric: Any) -> list[subprocess.Popen[bytes]]:
    return getattr(fabric.strategy.launcher, "procs", [])


def _was_started(fabric: Any) -> bool:
    """Whether this rank was started by the first one, and not by torchrun or Slurm."""
    from lightning_fabric.plugins.environments import LightningEnvironment

    return fabric.global_rank > 0 and isinstance(fabric.strategy.cluster_environment, LightningEnvironment)


def _other_ranks(fabric: Any) -> Iterator[tuple[int, int]]:
    """The ranks that this one knows, with their processes."""
    yield from ((rank, process.pid) for rank, process in enumerate(_started(fabric), start=1))
    if _was_started(fabric):
        yield 0, os.getppid()


def _ended_rank(fabric: Any) -> str | None:
    for rank, process in enumerate(_started(fabric), start=1):
        if process.poll():
            return f"rank {rank} (process {process.pid}) {how_it_ended(process.returncode)}"
    if _was_started(fabric) and os.getppid() != int(os.environ[FIRST_RANK]):
        return f"rank 0 (process {os.environ[FIRST_RANK]}) is gone"
    return None


def _watch_ranks(fabric: Any) -> None:
    """End this process soon after a rank that it knows: it may wait for it in a call that no error reaches."""
    from lightning_fabric.strategies.launchers import subprocess_script

    # Fabric's own observer kills this process, which could not say what happened, nor save, nor end with its exit code.
    subprocess_script._launch_process_observer = lambda child_processes: None

    def watch() -> None:
        while not (said := _ended_rank(fabric)):
            time.sleep(0.5)
        # Whoever has noticed it by an error, or stops as that one did, has the time that it takes to save.
        if fabric.ends_in_order.wait(GRACE_S):
            return
        end_ranks(fabric)
        # All of them may have been asked to stop, and this one still waits for another in a call that does not end.
        code = code_of_stop()
        end_now(f"{said}, and this rank waits for it; go on with --resume", 2 if code is None else code)

    threading.Thread(target=watch, daemon=True).start()


def close_runtime(fabric: Any) -> None:
    """Leave the process group together, where there is one; without it the other ranks die noisily at exit."""
    fabric.barrier()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def best_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU, whose freed memory is then kept for what is computed."""
    if torch.accelerator.is_available() and (accelerator := torch.accelerator.current_accelerator()):
        return accelerator
    keep_freed_memory()
    return torch.device("cpu")
