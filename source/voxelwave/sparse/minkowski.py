"""Sparse convolutions by MinkowskiEngine (Choy et al., CVPR 2019), the engine that was first described."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voxelwave.errors import InputError
from voxelwave.sparse.volume import Sites, SparseVolume

INSTALL = "docker/install_minkowski.sh (`make minkowski`) builds it, and sparse: gather does without"


def load_minkowski() -> Any:
    """Import MinkowskiEngine without the side effects of its import.

    It appends to `sys.path`, warns, and on large machines sets OMP_NUM_THREADS for every process started later.
    Raises InputError where it is missing or was built for another torch.
    """
    path, threads = list(sys.path), os.environ.get("OMP_NUM_THREADS")
    try:
        _check_build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import MinkowskiEngine
    except InputError:
        raise
    except Exception as error:  # what does not fit fails in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"MinkowskiEngine cannot be imported ({reason}): {INSTALL}") from None
    finally:
        sys.path[:] = path
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
    return MinkowskiEngine


def _check_build() -> None:
    """Refuse what is missing, and what was built for another torch, before it can end the process.

    The version that docker/install_minkowski.sh gives says for which torch it was built.
    """
    try:
        version = metadata.version("MinkowskiEngine")
    except metadata.PackageNotFoundError:
        raise InputError(f"MinkowskiEngine is not installed: {INSTALL}") from None
    built_for = re.search(r"\+torch(\S+?)\.(?:cpu|cu\d+)\b", version)
    here = torch.__version__.split("+")[0]
    if built_for and built_for[1] != here:
        raise InputError(f"MinkowskiEngine {version} was built for torch {built_for[1]}, and this is {here}: {INSTALL}")


@dataclass(frozen=True)
class _Map:
    """Sites as MinkowskiEngine keeps them."""

    manager: Any
    key: Any
    #: For each of its rows the row among our features; None where both have the same order, as on the CPU.
    order: Int[Tensor, "site"] | None

    def into(self, features: Tensor) -> Tensor:
        """Put features into the order of the map."""
        return features if self.order is None else features.index_select(0, self.order)

    def out_of(self, features: Tensor) -> Tensor:
        """Put features of the map back into our order."""
        return features if self.order is None else torch.empty_like(features).index_copy(0, self.order, features)


class MinkowskiBackend:
    """Convolutions on `SparseVolume` by MinkowskiEngine, in fp32 or fp64; weights in the layout of conv3d.

    Raises InputError where MinkowskiEngine is missing or does not fit.
    """

    name = "minkowski"

    def __init__(self) -> None:
        self._engine = load_minkowski()
        self._mode = importlib.import_module("MinkowskiEngineBackend._C").ConvolutionMode.DEFAULT
        same = {"is_transpose": False, "expand_coordinates": False, "dimension": 3}
        self._around = self._engine.KernelGenerator(kernel_size=3, stride=1, **same)
        self._windows = self._engine.KernelGenerator(kernel_size=2, stride=2, **same)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are built anew: MinkowskiEngine's objects can be neither copied nor pickled."""
        return MinkowskiBackend, ()

    def check(self, device: torch.device) -> None:
        """Raise InputError where this build does not run on `device`."""
        if device.type not in ("cpu", "cuda"):
            raise InputError(f"MinkowskiEngine runs on cpu and cuda, not on {device.type}: use sparse: gather")
        if device.type == "cuda" and not self._engine.is_cuda_available():
            raise InputError(f"this MinkowskiEngine was built without CUDA: {INSTALL}")

    def convolve(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 3 3 3"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Submanifold convolution of stride 1: the active sites stay as they are."""
        here = self._map(volume.sites)
        return SparseVolume(self._apply(volume.features, weight, bias, self._around, here, here), volume.sites)

    def downsample(
        self, volume: SparseVolume, weight: Float[Tensor, "out in 2 2 2"], bias: Float[Tensor, "out"]
    ) -> SparseVolume:
        """Convolution of kernel 2, stride 2: a coarse site is active where one of its eight sites was."""
        fine, coarse, plans = self._map(volume.sites), volume.sites.coarse, volume.sites.plans
        if "minkowski, coarse" not in plans:
            plans["minkowski, coarse"] = self._insert(coarse, fine.manager, stride=2)
        there = plans["minkowski, coarse"]
        return SparseVolume(self._apply(volume.features, weight, bias, self._windows, fine, there), coarse)

    def _apply(
        self, features: Tensor, weight: Tensor, bias: Tensor, kernel: Any, source: _Map, target: _Map
    ) -> Float[Tensor, "site out"]:
        # It aborts the process where a tensor is empty. Gradients are 0 then, and there.
        if not len(features):
            return features @ weight.sum((2, 3, 4)).T + bias
        with torch.autocast(features.device.type, enabled=False):
            summed: Tensor = self._engine.MinkowskiConvolutionFunction.apply(
                source.into(features.to(weight.dtype)),
                weight.permute(2, 3, 4, 1, 0).flatten(0, 2).contiguous(),
                kernel,
                self._mode,
                source.key,
                target.key,
                source.manager,
            )
            return target.out_of(summed) + bias

    def _map(self, sites: Sites) -> _Map:
        """Return the map of these sites, in a coordinate manager that serves them alone and is freed with them."""
        if "minkowski" not in sites.plans:
            types = self._engine.CoordinateMapType
            kind = types.CUDA if sites.active.is_cuda else types.CPU
            manager = self._engine.CoordinateManager(D=3, coordinate_map_type=kind)
            sites.plans["minkowski"] = self._insert(sites, manager, stride=1)
        plan: _Map = sites.plans["minkowski"]
        return plan

    def _insert(self, sites: Sites, manager: Any, *, stride: int) -> _Map:
        # Its offsets count up along the first axis first, those of conv3d along the last: it gets the axes reversed.
        scale = torch.tensor([1, stride, stride, stride], device=sites.active.device)
        key, _ = manager.insert_and_map((sites.coordinates * scale)[:, [0, 3, 2, 1]].int(), stride)
        sample, width, height, depth = (manager.get_coordinates(key) // scale).long().unbind(1)
        order = sites.rows[sample, depth, height, width]
        same = torch.equal(order, torch.arange(len(order), device=order.device))
        return _Map(manager, key, None if same else order)
