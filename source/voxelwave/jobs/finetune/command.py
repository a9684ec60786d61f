"""The command `voxelwave finetune`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import Overrides, Resume, train_and_leave


def finetune(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/finetune.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train a model for segmentation or classification on a pretrained backbone, and evaluate it.

    The exit code is 0, or run.exit_code_when_stopped (130) where it was stopped.
    """
    from voxelwave.jobs.finetune.config import load_finetune_config
    from voxelwave.jobs.finetune.run import finetune as run

    checked = load_finetune_config(config, overrides or [])
    train_and_leave(checked, lambda: run(checked, resume=resume))
