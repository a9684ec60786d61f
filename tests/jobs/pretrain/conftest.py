"""A small configuration, and the run of it."""

from pathlib import Path

import pytest
import yaml

from support.pretraining_runs import QUIET, named, tiny


@pytest.fixture
def raw_config(heads, tmp_path) -> dict:
    return tiny(heads, tmp_path / "runs")


@pytest.fixture
def config_file(raw_config, tmp_path) -> Path:
    """The same as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config))
    return path


@pytest.fixture(scope="session")
def whole(heads, tmp_path_factory):
    """The uninterrupted run, for tests that read it alone."""
    from voxelwave.jobs.pretrain.run import pretrain

    raw = tiny(heads, tmp_path_factory.mktemp("whole"))
    raw["run"]["tensorboard"] = True
    config = named(raw, "whole")
    assert pretrain(config, console=QUIET)
    return config


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Runs draw no figures, which takes longer than their steps."""
    monkeypatch.setattr("voxelwave.jobs.pretrain.run._draw", lambda *_: None)
