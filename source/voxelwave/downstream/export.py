"""Models as files that run without this package: programs of torch.export and ONNX, checked against PyTorch."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxelwave.contracts import Grid
from voxelwave.errors import InputError
from voxelwave.ops.files import replacing
from voxelwave.ops.loggers import silenced
from voxelwave.ops.seeding import torch_generator
from voxelwave.ops.texts import one_line

INPUT = "volume"
DESCRIPTION_FILE = "description.json"  # within a program of torch.export
METADATA_KEY = "voxelwave"  # of an ONNX file's metadata_props
TORCH_TOLERANCE, ONNX_TOLERANCE = 1e-4, 1e-3
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LARGEST = 2**31  # bytes of a protobuf message
BATCHES = (2, 1)  # the first is traced, the other shows that the program takes any
ANY_BATCH = ({0: torch.export.Dim("batch")},)

Outputs = list[Tensor]


class Check(NamedTuple):
    """How far the outputs of an exported model are from PyTorch's, and how large these are."""

    difference: float
    largest: float


def export_torch(
    model: nn.Module, path: Path, *, in_channels: int, size: Grid, description: Mapping[str, Any]
) -> Check:
    """Write a program of torch.export for volumes `[any batch, in_channels, *size]`; it holds `description`, too.

    Raises:
        InputError: where the model cannot be traced, or the program computes something else than the model.
    """
    volumes = _volumes(in_channels, size)
    program = _trace(model, volumes[0])
    program.example_inputs = None  # as large as two volumes, and of no use to who has the file
    with replacing(path) as part:
        with part.open("wb") as file:  # given a path, torch would keep its name in the file
            torch.export.save(program, file, extra_files={DESCRIPTION_FILE: json.dumps(description)})
        module = torch.export.load(part).module()
        return _check(model, lambda volume: _listed(module(volume)), volumes, TORCH_TOLERANCE, path)


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    in_channels: int,
    size: Grid,
    outputs: Sequence[str],
    description: Mapping[str, Any],
) -> Check:
    """Write an ONNX file for volumes `[any batch, in_channels, *size]`, with `description` in its metadata.

    Raises:
        InputError: where a package is missing, the model cannot be traced, is too large for one file, or onnxruntime
            computes something else than PyTorch.
    """
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install 'voxelwave[export]'")
    if (content := sum(value.nbytes for value in model.state_dict().values())) >= ONNX_LARGEST:
        raise InputError(f"the weights take {content / 2**30:.1f} GiB, an ONNX file holds 2: choose --format torch")
    import onnx
    import onnxruntime

    volumes = _volumes(in_channels, size)
    program = _trace(model, volumes[0])
    with _tracing("ONNX does not take the model"):
        converted: Any = torch.onnx.export(
            program, input_names=[INPUT], output_names=list(outputs), dynamic_shapes=ANY_BATCH, verbose=False
        )
    converted.model.metadata_props[METADATA_KEY] = json.dumps(description)
    with replacing(path) as part:
        converted.save(part, external_data=False)
        onnx.checker.check_model(str(part), full_check=True)
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])

        def run(volume: Tensor) -> Outputs:
            return [torch.from_numpy(output) for output in session.run(None, {INPUT: volume.numpy()})]

        return _check(model, run, volumes, ONNX_TOLERANCE, path)


def _volumes(in_channels: int, size: Grid) -> list[Float[Tensor, "batch channel depth height width"]]:
    generator = torch_generator(0, "export")
    return [torch.rand(batch, in_channels, *size, generator=generator) for batch in BATCHES]


def _trace(model: nn.Module, volume: Tensor) -> torch.export.ExportedProgram:
    """Trace on the CPU, in eval mode, with a batch of any size."""
    with _tracing("torch.export does not take the model"):
        program = torch.export.export(model.cpu().eval(), (volume,), dynamic_shapes=ANY_BATCH)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported it
    return program


@torch.no_grad()
def _check(
    model: nn.Module, exported: Callable[[Tensor], Outputs], volumes: Sequence[Tensor], tolerance: float, path: Path
) -> Check:
    difference = largest = 0.0
    for volume in volumes:
        for ours, theirs in zip(_listed(model(volume)), exported(volume), strict=True):
            largest = max(largest, ours.abs().max().item())
            apart = (ours - theirs).abs().max().item()
            # Written this way round, a NaN is refused, too.
            if not apart <= tolerance:
                raise InputError(
                    f"{path} is not written: it differs from PyTorch by {apart:.1e}, more than {tolerance:.0e} "
                    f"(values up to {largest:.1e})"
                )
            difference = max(difference, apart)
    return Check(difference, largest)


def _listed(outputs: Tensor | Sequence[Tensor]) -> Outputs:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


@contextmanager
def _tracing(refused: str) -> Iterator[None]:
    """Make one line of what torch says over pages, and keep it from warning of itself."""
    try:
        with warnings.catch_warnings():
            # torch copies its own trees in a way that it has deprecated.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            # What it cannot simplify, such as a split of weights, stays as it is and computes the same.
            with silenced(logging.getLogger("onnxscript.optimizer._constant_folding")):
                yield
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"{refused}: {one_line(error)}") from None
