"""The commands below `voxelwave subsample`."""

from pathlib import Path
from typing import Annotated

import typer

from voxelwave.jobs.common.options import Overrides, Resume, leave, run_at, train_and_leave

ModelFile = Annotated[
    Path | None, typer.Option("--model", help="A file of Python with a class Model(nn.Module) of your own; it is run.")
]


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file, see configs/subsample; generated heads without one.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    learn_mask: Annotated[
        bool | None, typer.Option("--learn-mask/--fixed-mask", help="Learn the mask with the network.")
    ] = None,
    drop_rate: Annotated[float | None, typer.Option(help="The share of frequencies to remove.")] = None,
    mask_lr: Annotated[float | None, typer.Option(help="The rate of the mask's own step.")] = None,
    model: ModelFile = None,
    out_dir: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
) -> None:
    """Train a network behind a mask of frequencies, and score it on training, validation and test.

    The exit code is 0, or run.exit_code_when_stopped (130) where it was stopped.
    """
    from voxelwave.jobs.subsample.config import SubsampleConfig, load_subsample_config
    from voxelwave.jobs.subsample.own_model import read_own_model
    from voxelwave.jobs.subsample.train import train_subsampled

    flags: dict[str, object] = {"mask.learn": learn_mask, "mask.drop_rate": drop_rate, "mask.mask_lr": mask_lr}
    given = {key: value for key, value in flags.items() if value is not None} | run_at(out_dir)
    checked = load_subsample_config(SubsampleConfig, config, overrides or [], given)
    own = None if model is None else read_own_model(model)
    train_and_leave(checked, lambda: train_subsampled(checked, own=own, resume=resume))


def study(
    config: Annotated[Path, typer.Argument(help="A YAML file with a section `study`, see configs/subsample.")],
    overrides: Overrides = None,
    model: ModelFile = None,
) -> None:
    """Train fixed and learned masks at many drop rates beside their controls; called again, it goes on.

    The folder of the run gets report.html and cases.csv. The exit code is 0, or run.exit_code_when_stopped (130) where
    it was stopped.
    """
    from voxelwave.jobs.subsample.config import StudyConfig, load_subsample_config
    from voxelwave.jobs.subsample.own_model import read_own_model
    from voxelwave.jobs.subsample.study.run import run_study

    checked = load_subsample_config(StudyConfig, config, overrides or [])
    leave(run_study(checked, own=None if model is None else read_own_model(model)))
