"""Phase 0 under the name people know: `voxelwave pretrain`, with configs/pretrain/subset.yaml unless told otherwise."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave import cli
from voxelwave.jobs.common.options import Overrides, Resume

# Found from any working directory. Paths inside a config stay relative to the working directory.
SUBSET = Path(__file__).resolve().parents[1] / "configs" / "pretrain" / "subset.yaml"


def train(
    config: Annotated[Path, typer.Option(help="A YAML file.", show_default="configs/pretrain/subset.yaml")] = SUBSET,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Pretrain one model on MRI and CT, as `voxelwave pretrain CONFIG` does."""
    cli.pretrain(config, overrides, resume)


if __name__ == "__main__":
    cli.main(cli.commands_of({"train": train}))
