"""Fixtures of fine-tuning."""

import pytest

from support.finetuning_runs import export_backbone


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """A backbone that was trained on both modalities."""
    return export_backbone(tmp_path_factory.mktemp("backbones") / "both")
