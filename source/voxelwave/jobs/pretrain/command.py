"""The command `voxelwave pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import Overrides, Resume, leave
from voxelwave.jobs.common.outcome import Outcome


def pretrain(
    config: Annotated[Path, typer.Argument(help="A YAML file; see configs/pretrain.")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Pretrain one model on MRI and CT, and leave weights, logs and figures in <out_dir>/<name>.

    The exit code is 0, or 130 where it was stopped.
    """
    from voxelwave.jobs.pretrain.config import load_config
    from voxelwave.jobs.pretrain.run import pretrain as run

    leave(Outcome(run(load_config(config, overrides or []), resume=resume)))
