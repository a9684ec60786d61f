"""Kernels that repeat bit for bit, for as long as a run lasts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from voxelwave.errors import InputError

WORKSPACE, WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":16:8", ":4096:8")  # with which cuBLAS repeats its sums
_NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS = "Deterministic behavior was enabled with"


@contextmanager
def deterministic_algorithms(*, enabled: bool = True) -> Iterator[None]:
    """Let torch use deterministic kernels alone; afterwards everything is as it was before.

    It has to be entered before CUDA multiplies its first matrix: cuBLAS reads `WORKSPACE` once.

    Raises InputError for an operation that has no such kernel, in place of torch's error.
    """
    if not enabled:
        yield
        return
    workspace, benchmark = os.environ.get(WORKSPACE), torch.backends.cudnn.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if workspace not in WORKSPACES:
            os.environ[WORKSPACE] = WORKSPACES[0]
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        yield
    except RuntimeError as error:
        if found := _NO_KERNEL.search(str(error)):
            raise InputError(
                f"the operation {found[1]} has no deterministic kernel here: set training.deterministic=false, or "
                f"change the setting that needs it"
            ) from None
        if _CUBLAS in str(error):
            raise InputError(
                f"training.deterministic: this process has used CUDA before, when cuBLAS was told nothing: set "
                f"{WORKSPACE}={WORKSPACES[0]} in its environment"
            ) from None
        raise
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
        else:
            os.environ[WORKSPACE] = workspace
