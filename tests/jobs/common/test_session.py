import io
import json
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.engine.loop import LoopSettings
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import JobConfig, RunConfig, Section
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.session import Session

QUIET = Console(quiet=True)
FREE = {"training": ("max_steps",)}


class Rates(Section):
    max_steps: int = 6
    rate: float = 0.1


class LineConfig(JobConfig):
    """A job of ten lines: a number that is drawn to 0, from batches of numbers."""

    run: RunConfig
    training: Rates = Rates()


class Numbers(NamedTuple):
    values: torch.Tensor
    modality: str
    files: list[str]


def config(tmp_path, **training):
    return LineConfig(run=RunConfig(name="line", out_dir=tmp_path, tensorboard=False), training=Rates(**training))


def batches(start, end):
    for step in range(start, end):
        yield Numbers(torch.full((2,), float(step)), "number", ["one", "two"])


def train(of, session, **options):
    number = nn.Linear(1, 1, bias=False)
    nn.init.ones_(number.weight)
    model, optimizer = session.fabric.setup(number, torch.optim.Adam(number.parameters(), lr=of.training.rate))

    def objective(batch, index):
        loss = model(batch.values[:, None] + 1).square().mean()
        return StepOutput(loss, {"loss": loss.detach()})

    settings = LoopSettings(of.training.max_steps, 3, checkpoint_every_steps=100, samples="numbers")
    given = {"settings": settings, "metadata": {"files": {"number": "2:ab"}}, **options}
    return session.train(model, optimizer, objective, batches, lambda step: of.training.rate, **given)


def run(of, *, console=QUIET, should_stop=None, resume=False, **options):
    with Session(of, resume=resume, console=console, should_stop=should_stop) as session:
        session.check_continues(FREE)
        return session.run(partial(train, of, **options), device="cpu", precision="fp32")


def losses(of):
    lines = (of.run_folder() / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_a_job_stops_between_two_steps_and_goes_on_to_the_same_numbers(tmp_path, stopped_after):
    whole, parted = config(tmp_path / "whole"), config(tmp_path / "parted")
    assert run(whole)
    steps, printed = iter(range(1, 9)), io.StringIO()
    assert not run(parted, should_stop=lambda: next(steps) == stopped_after, console=Console(file=printed))
    assert f"stopped at step {stopped_after} of 6; go on with --resume" in printed.getvalue()
    assert len(losses(parted)) == stopped_after
    assert run(parted, resume=True)
    assert losses(parted) == losses(whole)
    one, other = (load_checkpoint(of.run_folder() / "last.pth") for of in (whole, parted))
    assert torch.equal(one["model"]["weight"], other["model"]["weight"])
    assert one["files"] == {"number": "2:ab"}


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    assert run(config(tmp_path))
    with pytest.raises(InputError, match=r"line holds a run already: go on with --resume"):
        run(config(tmp_path))


def test_a_run_goes_on_with_the_settings_that_it_was_begun_with_but_for_those_that_are_free(tmp_path):
    assert run(config(tmp_path))
    with pytest.raises(InputError, match=r"cannot resume .*line: 'training.rate' was 0.1 and is 0.2 now; restore it"):
        run(config(tmp_path, rate=0.2), resume=True)
    assert run(config(tmp_path, max_steps=8), resume=True)
    assert len(losses(config(tmp_path))) == 8


def test_a_run_goes_on_with_the_files_that_it_was_begun_with(tmp_path):
    assert run(config(tmp_path))
    with Session(config(tmp_path), resume=True, console=QUIET) as session:
        session.check_continues(FREE, files={"number": "2:ab"})
        with pytest.raises(InputError, match=r"its numbers were {'number': '2:ab'} and are {'number': '3:cd'} now"):
            session.check_continues(FREE, files={"number": "3:cd"}, what="numbers")


def test_a_job_that_gives_up_is_complete_and_a_second_call_trains_no_further(tmp_path):
    of, steps = config(tmp_path), iter(range(100))
    assert run(of, given_up=lambda: next(steps) >= 3)
    count = len(losses(of))
    assert count == 3
    assert run(of, resume=True, given_up=lambda: True)
    assert len(losses(of)) == count


def test_what_is_shown_of_an_epoch_is_what_the_job_names(tmp_path):
    printed = io.StringIO()
    measured = {"validation_score": 0.5, "validation_other": 0.25}
    assert run(
        config(tmp_path), console=Console(file=printed), probe=lambda step: measured, shown=("validation_score",)
    )
    line = next(line for line in printed.getvalue().splitlines() if line.startswith("epoch 2"))
    assert "validation score 0.5000" in line
    assert "numbers/s" in line
    assert "other" not in line
