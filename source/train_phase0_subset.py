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
    """Pretrain one model on MRI and CT, as `voxelwave pretrain CONFIG` does.

    Without a configuration it takes 50 MRI and 50 CT of data/processed, laid out as described, and where these are not
    in place, generated heads, which it makes first.
    """
    given = list(overrides or [])
    if config == SUBSET and not any(override.startswith(("data.sources", "data=")) for override in given):
        from voxelwave.jobs.common.console import Console
        from voxelwave.jobs.pretrain import phase0
        from voxelwave.jobs.pretrain.config import load_config

        if sources := phase0.described_sources():
            Console().say("volumes: up to 50 of MRI and of CT, from " + ", ".join(source["path"] for source in sources))
            given.insert(0, phase0.as_override(sources))
        else:
            Console().say(f"{phase0.MRI[0].parent} and {phase0.CT} are not in place: generated heads of {phase0.HEADS}")
            if phase0.heads_are_missing():
                load_config(config, given)  # what is wrong with it is said before heads are made
                cli.synthesize(phase0.HEADS, num_mri=phase0.NUM_HEADS, num_ct=phase0.NUM_HEADS)
    cli.pretrain(config, given, resume)


if __name__ == "__main__":
    cli.main(cli.commands_of({"train": train}))
