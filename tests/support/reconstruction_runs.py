"""Runs of reconstruction that take a second or two."""

from pathlib import Path

import torch

from support.kspace_files import centre_and_every_fourth, kspace
from voxelwave.data.kspace.writing import write_challenge
from voxelwave.engine.run_log import read_metrics
from voxelwave.jobs.reconstruct.config import ReconstructionConfig, check_reconstruction_config

LEVEL = {"prompt_channels": 2, "prompt_size": 4, "encoder_blocks": 1, "decoder_blocks": 1}
UNET = {"first_channels": 4, "levels": [{"channels": 4, **LEVEL}, {"channels": 6, **LEVEL}]}
TINY = {
    "name": "promptmr_plus",
    "num_cascades": 2,
    "unet": UNET,
    "sensitivity": {"unet": UNET, "per_coil": False},
}
AUGMENT = {"moves": {"flip_horizontal": {"p_max": 1.0}, "shear": {"p_max": 0.5}}}
TIMES = ("slices_per_second", "data_wait_s")


def write_volumes(folder: Path, number: int = 3, *, scale: float = 1.0) -> Path:
    """Write that many small volumes in the challenge's layout; `scale` is their unit."""
    for index in range(number):
        write_challenge(
            folder, f"volume{index}.h5", kspace(slices=3, seed=index) * scale, centre_and_every_fourth(), size=(28, 24)
        )
    return folder


def reconstruction(files: Path, out: Path, name: str = "run", **sections) -> ReconstructionConfig:
    """Return a configuration of two blocks of an epoch each; keywords change its sections."""
    raw = {
        "run": {"name": name, "out_dir": str(out), "tensorboard": False},
        "data": {"files": str(files), "readout_rows": 30, "num_workers": 0},
        "model": TINY,
        "blocks": [
            {"epochs": 1, "learning_rate": 3e-3},
            {"epochs": 1, "learning_rate": 2e-3, "augment": AUGMENT},
        ],
        "training": {"device": "cpu"},
    }
    for section, values in sections.items():
        raw[section] = values if section == "blocks" else raw[section] | values
    return check_reconstruction_config(raw)


def measured(config: ReconstructionConfig) -> list[dict]:
    """Return the records of a run without what depends on the clock."""
    records = read_metrics(config.run_folder() / "metrics.jsonl")
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def same_weights(one: dict, other: dict) -> bool:
    """Whether two states hold the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
