"""Runs as an export finds them, and the export itself."""

import io

import torch

from voxelwave.backbones.waveformer import WaveFormer3D
from voxelwave.downstream.finetuned import build_model, save_finetuned
from voxelwave.downstream.load_backbone import save_backbone
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.export.run import export

SETTINGS = {"patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
PREPROCESSING = {
    "orientation": "RAS",
    "spacing_mm": 1.25,
    "crop_size": [12, 16, 16],
    "view_share": None,
    "modalities": {
        "mri": {"channels": 1, "range": [0, 1], "percentiles": [2, 98]},
        "ct": {"channels": 3, "range": [0, 1], "windows_hu": [[40, 80], [80, 200], [600, 2800]]},
    },
}


def write_backbone(folder, volumes=None, in_channels=(1, 3), **described):
    """A finished pretraining run, as far as an export looks at it."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    backbone = WaveFormer3D(in_channels, **SETTINGS)
    description = {
        "format_version": 1,
        "voxelwave": "0.0.9",
        "architecture": {"name": "waveformer", "in_channels": list(in_channels), "settings": SETTINGS},
        "preprocessing": PREPROCESSING,
        "data": {"volumes": volumes or {"mri": 5, "ct": 3}, "steps": 6},
        "license": "CC-BY-4.0",
    }
    save_backbone(folder, backbone.state_dict(), description | described)
    return folder


SEGMENTATION = {"name": "segmentation", "classes": ["background", "brain", "skull"], "width": 2}
CLASSIFICATION = {"name": "classification", "targets": ["lesion", "aneurysm"], "pooling": "attention"}


def write_model(folder, task):
    """A finished fine-tuning run, as far as an export looks at it."""
    folder.mkdir()
    description = {
        "voxelwave": "0.0.9",
        "architecture": {"name": "waveformer", "in_channels": [1], "settings": SETTINGS, "depths": [1, 2]},
        "preprocessing": PREPROCESSING,
        "task": task,
        "data": {"cases": {"train": 4, "validation": 1}},
        "backbone": {"path": "/home/me/runs/mri", "data": {"volumes": {"mri": 9}, "steps": 70}, "license": "MIT"},
        "license": None,
    }
    torch.manual_seed(0)
    save_finetuned(folder, build_model(description), description)
    return folder


def run_export(*args, **kwargs):
    """Export, and return what was printed."""
    printed = io.StringIO()
    export(*args, console=Console(file=printed), **kwargs)
    return printed.getvalue()


def written(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
