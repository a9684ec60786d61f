"""The command `voxelwave pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import Overrides, Resume, train_and_leave


def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/pretrain.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Pretrain one model on MRI and CT, and leave weights, logs and figures in <out_dir>/<name>.

    The exit code is 0, or run.exit_code_when_stopped (130) where it was stopped.
    """
    from voxelwave.jobs.pretrain.config import load_config
    from voxelwave.jobs.pretrain.run import pretrain as run

    checked = load_config(config, overrides or [])
    train_and_leave(checked, lambda: run(checked, resume=resume))
