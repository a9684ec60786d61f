"""What `voxelwave doctor` finds with torch: devices, sparse backends, and whether a step of training runs on them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

# Whatever `voxelwave pretrain` imports has to be there, and not torch alone.
import voxelwave.jobs.pretrain.run  # noqa: F401
from voxelwave.jobs.doctor.machine import GB, Finding, Level, installed_version
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.ops.texts import one_line
from voxelwave.sparse.backends import NAMES, why_not

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_training(require: Sequence[str]) -> Iterator[Finding]:
    """Devices, MinkowskiEngine, and for every device and backend the precisions in which a step trains."""
    yield Finding("ok", "torch", f"{torch.__version__}, {_cuda_of_torch()}; threads: {torch.get_num_threads()}")
    devices = [torch.device("cpu")]
    gpus = list(_gpus("cuda" in require))
    yield from gpus
    if all(finding.level == "ok" for finding in gpus):
        devices.append(torch.device("cuda", 0))
    minkowski = _minkowski("minkowski" in require)
    yield minkowski
    names = [name for name in NAMES if name != "minkowski" or minkowski.level == "ok"]
    for device in devices:
        yield from _steps(device, names, "minkowski" in require)


def _cuda_of_torch() -> str:
    return f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"


def _gpus(required: bool) -> Iterator[Finding]:
    """Each GPU, or why there is none."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    for index in range(torch.cuda.device_count() if available else 0):
        gpu = torch.cuda.get_device_properties(index)
        found = f"{gpu.name}, {gpu.total_memory / GB:.0f} GB, compute capability {gpu.major}.{gpu.minor}"
        yield Finding("ok", f"cuda:{index}", found)
    if available:
        return
    if torch.version.cuda is None:
        seen = "torch is a build without CUDA" + (", though a driver is there" if _driver() else "")
        remedy = "to train on a GPU, install a CUDA build of torch"
    else:
        seen = f"torch sees none{''.join(f': {warning.message}' for warning in said[:1])}"
        remedy = "see what nvidia-smi says; in Docker: --gpus all"
    yield Finding("problem" if required else "note", "GPU", seen, remedy)


def _driver() -> bool:
    return Path("/dev/nvidiactl").exists()


def _minkowski(required: bool) -> Finding:
    """Whether MinkowskiEngine is there and fits this torch."""
    absent: Level = "problem" if required else "note"
    version = installed_version("MinkowskiEngine")
    if reason := why_not("minkowski", torch.device("cpu")):
        return Finding(absent, "MinkowskiEngine", version or "is not installed; gather does its work", reason)
    return Finding("ok", "MinkowskiEngine", f"{version}, imported")


def _steps(device: torch.device, names: Sequence[str], require_minkowski: bool) -> Iterator[Finding]:
    losses: dict[str, float] = {}
    for name in names:
        what = f"{device}, {name}"
        if reason := why_not(name, device):
            yield Finding(
                "problem" if require_minkowski and name == "minkowski" else "note", what, "cannot run", reason
            )
            continue
        began, done = time.perf_counter(), []
        try:
            for precision in precisions(device):
                loss = train_step(device, name, precision)
                losses.setdefault(name, loss)
                done.append(precision)
        except Exception as error:
            failed = f"{precision}: {type(error).__name__}: {one_line(error)}"
            yield Finding("problem", what, failed, f"use another backend (--set model.sparse={_other(name)}) or device")
            continue
        yield Finding("ok", what, f"a step trains in {', '.join(done)} ({time.perf_counter() - began:.1f} s)")
    if losses and max(losses.values()) - min(losses.values()) > 1e-3 * abs(max(losses.values())):
        found = ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items())
        yield Finding("problem", f"{device}, agreement", f"losses of one step: {found}", "use --set model.sparse=dense")


def _other(name: str) -> str:
    return "dense" if name != "dense" else "gather"


def precisions(device: torch.device) -> list[str]:
    """The values of `training.precision` that run on a device."""
    if device.type == "cpu":
        return ["fp32", "bf16"]
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return ["fp32", *(["bf16"] if native else []), "fp16"]


def train_step(device: torch.device, sparse: str, precision: str) -> float:
    """Compute loss and gradients of a tiny pretrainer on a crop of 16³ and return the loss.

    Raises ArithmeticError where one of them is not finite.
    """
    config = check_config(
        {
            "data": {"crop_size": [16] * 3, "sources": [{"path": "none", "modality": "mri"}]},
            "model": {
                "backbone": {"name": "waveformer", "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
                "sparse": sparse,
                "encoder_widths": [8, 12],
                "decoder_width": 8,
            },
        }
    )
    pretrainer = build_pretrainer(config).to(device)
    volume = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    dtype = _DTYPES[precision]
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        loss = pretrainer(volume, torch.Generator().manual_seed(0)).loss
    loss.backward()
    value: float = loss.item()
    gradients = [parameter.grad for parameter in pretrainer.parameters() if parameter.grad is not None]
    if not (math.isfinite(value) and gradients and all(bool(g.isfinite().all()) for g in gradients)):
        raise ArithmeticError("the loss or a gradient is not finite")
    return value
