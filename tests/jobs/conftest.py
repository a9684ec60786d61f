"""A small data set and a small configuration, made once."""

from pathlib import Path

import pytest
import yaml


@pytest.fixture
def raw_config(heads, tmp_path) -> dict:
    """A run of 2 epochs × 6 steps that takes a second."""
    return {
        "run": {"name": "tiny", "out_dir": str(tmp_path / "runs"), "seed": 0, "tensorboard": False},
        "data": {
            "crop_size": [16, 16, 16],
            "num_workers": 0,
            "sources": [{"path": str(heads / name), "modality": name} for name in ("mri", "ct")],
        },
        "model": {
            "backbone": {"name": "waveformer", "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
            "sparse": "gather",  # what is fastest may differ from one run to the next
            "encoder_widths": [8, 12],
            "decoder_width": 8,
        },
        "training": {"epochs": 2, "learning_rate": 1e-3, "probe_every_steps": 4},
    }


@pytest.fixture
def config_file(raw_config, tmp_path) -> Path:
    """The same as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config))
    return path
