"""Self-supervised 3D pretraining for brain MRI and CT: one model, both modalities."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voxelwave.downstream.load_backbone import load_backbone as load_backbone
    from voxelwave.jobs.pretrain.config import load_config as load_config
    from voxelwave.jobs.pretrain.pretrainer import build_pretrainer as build_pretrainer

__version__ = "0.1.0"
_PUBLIC = {
    "load_config": "voxelwave.jobs.pretrain.config",
    "build_pretrainer": "voxelwave.jobs.pretrain.pretrainer",
    "load_backbone": "voxelwave.downstream.load_backbone",
}
__all__ = ["__version__", "build_pretrainer", "load_backbone", "load_config"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `voxelwave --help` must not wait for torch.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'voxelwave' has no attribute '{name}'")
