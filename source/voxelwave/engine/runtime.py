"""Device, precision and processes, by Lightning Fabric."""

from __future__ import annotations

import logging
import os
from typing import Any, Literal

import torch

from voxelwave.errors import InputError
from voxelwave.ops.memory import keep_freed_memory

Precision = Literal["fp32", "bf16", "fp16"]
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # in the order in which Fabric believes them
_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(*, device: str = "auto", precision: Precision = "fp32", devices: int = 1) -> Any:
    """Return a launched Fabric. Raises InputError where the device is not there or cannot do the precision."""
    # Imported here: it takes a second, and the command line must not wait for it.
    from lightning_fabric import Fabric
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    if precision == "fp16" and (device == "cpu" or (device == "auto" and not torch.accelerator.is_available())):
        raise InputError("training.precision=fp16 needs a GPU: use bf16 or fp32 on the CPU")
    # Fabric announces its precision; an error is to stay one line.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # A step trains one modality, so that the other one's patch embedding and head get no gradient.
    strategy = "auto" if devices == 1 else "ddp_find_unused_parameters_true"
    try:
        fabric = Fabric(accelerator=device, devices=devices, strategy=strategy, precision=_FABRIC_PRECISION[precision])
    except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"training.device={device}, precision={precision}, devices={devices} cannot run here: {reason}"
        ) from None
    fabric.launch()
    keep_freed_memory()
    return fabric


def launched_rank() -> int:
    """Return which process of a run this is, by what Fabric, torchrun or Slurm told it when it was started."""
    return int(next((os.environ[name] for name in RANKS if name in os.environ), "0"))


def close_runtime(fabric: Any) -> None:
    """Leave the process group together, where there is one; without it the other ranks die noisily at exit."""
    fabric.barrier()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def best_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or torch.device(
        "cpu"
    )
