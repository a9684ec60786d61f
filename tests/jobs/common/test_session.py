import errno
import io
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import LAST, PREVIOUS, load_checkpoint
from voxelwave.engine.loop import LoopSettings
from voxelwave.errors import InputError
from voxelwave.jobs.common.config import JobConfig, RunConfig, Section
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.session import Session
from voxelwave.jobs.compare_logs.run import compare_logs

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


def run(of, *, console=QUIET, should_stop=None, resume=False, deterministic=False, **options):
    with Session(of, resume=resume, console=console, should_stop=should_stop) as session:
        session.check_continues(FREE)
        work = partial(train, of, **options)
        return session.run(work, device="cpu", precision="fp32", deterministic=deterministic)


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


def edited(path, change):
    path.write_bytes(change(path.read_bytes()))


def flipped(content):
    return content[:200] + bytes([content[200] ^ 0x40]) + content[201:]


def stopped_at(of, step):
    steps = iter(range(1, 99))
    assert not run(of, should_stop=lambda: next(steps) == step)
    return of.run_folder()


@pytest.fixture
def whole(tmp_path):
    """The losses of a run that nothing happened to."""
    assert run(config(tmp_path / "whole"))
    return losses(config(tmp_path / "whole"))


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:500], lambda content: b"", None])
def test_a_run_goes_on_from_the_generation_before_where_the_last_is_damaged_or_gone(tmp_path, caplog, whole, damage):
    of = config(tmp_path)
    folder = stopped_at(of, 5)
    if damage is None:
        (folder / LAST).unlink()
    else:
        edited(folder / LAST, damage)
    assert run(of, resume=True)
    assert losses(of) == whole
    (said,) = [each.message for each in caplog.records if each.name == "voxelwave"]
    assert said.startswith(f"warning: {folder / LAST} is ")
    assert said.endswith(f"; going on from {folder / PREVIOUS}, step 3")


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one(tmp_path, monkeypatch):
    of = config(tmp_path, max_steps=9)
    folder = stopped_at(of, 5)
    edited(folder / LAST, flipped)
    before = (folder / PREVIOUS).read_bytes()
    steps = iter(range(1, 99))
    assert not run(of, resume=True, should_stop=lambda: next(steps) == 1)  # one save
    assert load_checkpoint(folder / LAST)["step"] == 4
    assert (folder / PREVIOUS).read_bytes() == before
    assert not run(of, resume=True, should_stop=lambda: next(steps) == 3)
    assert [load_checkpoint(folder / name)["step"] for name in (LAST, PREVIOUS)] == [6, 4]  # stopped after an epoch


def test_where_no_generation_is_whole_that_is_said_and_nothing_is_touched(tmp_path):
    of = config(tmp_path)
    folder = stopped_at(of, 5)
    for name in (LAST, PREVIOUS):
        edited(folder / name, flipped)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=r"last\.pth is not a readable checkpoint \(damaged"):
        run(of, resume=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing is saved."""


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on_from_its_start(tmp_path, whole):
    of, steps = config(tmp_path), iter(range(1, 99))

    def killed():
        if next(steps) == 2:
            raise Killed
        return False

    with pytest.raises(Killed):
        run(of, should_stop=killed)
    assert load_checkpoint(of.run_folder() / LAST)["step"] == 0
    assert run(of, resume=True)
    assert losses(of) == whole


@pytest.mark.parametrize("left", ["metrics.jsonl", "best_model.pth", "checkpoint_epoch_1.pth", "a link"])
def test_what_is_left_of_a_run_without_a_checkpoint_to_go_on_from_is_not_begun_anew(tmp_path, left):
    of = config(tmp_path)
    folder = stopped_at(of, 5)
    for path in list(folder.iterdir()):
        if path.name not in ("config.yaml", left):
            path.unlink()
    if left == "a link":
        (folder / LAST).symlink_to(tmp_path / "nowhere")
    before = {path: path.lstat().st_mtime_ns for path in folder.iterdir()}
    reason = "no checkpoint at" if left == "a link" else rf"it holds {left}, and neither last\.pth nor"
    with pytest.raises(InputError, match=reason):
        run(of, resume=True)
    assert {path: path.lstat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("names", [(), ("config.yaml",)])
def test_a_folder_with_a_configuration_alone_is_the_start_of_a_run(tmp_path, whole, names):
    of = config(tmp_path)
    of.run_folder().mkdir(parents=True)
    for name in names:
        (of.run_folder() / name).write_text("run: {name: line}\n")
    assert run(of, resume=True)
    assert losses(of) == whole


def without(*steps):
    return lambda content: b"".join(line for at, line in enumerate(content.splitlines(True)) if at not in steps)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without(1), r"metrics\.jsonl lacks step 1 of the 5 that the checkpoint counts"),
        (without(0, 1, 2, 3, 4), r"metrics\.jsonl lacks step 0 of the 5"),
        (lambda content: content.splitlines(True)[0] + content, r"has step 0 where step 1 belongs"),
        (lambda content: b"".join(reversed(content.splitlines(True))), r"has step 4 where step 0 belongs"),
        (lambda content: content.replace(b'"loss": ', b'"loss": 1'), r"counts, but others, or changed ones"),
    ],
    ids=["missing", "all missing", "doubled", "reversed", "another run's"],
)
def test_a_run_does_not_go_on_with_other_records_than_it_wrote(tmp_path, damage, reason):
    of = config(tmp_path)
    folder = stopped_at(of, 5)
    edited(folder / "metrics.jsonl", damage)
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=reason):
        run(of, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_whose_last_records_are_lost_goes_on_from_the_generation_that_they_reach(tmp_path, caplog, whole):
    of = config(tmp_path)
    folder = stopped_at(of, 5)
    edited(folder / "metrics.jsonl", lambda content: content[:-10])
    assert run(of, resume=True)
    assert losses(of) == whole
    assert "lacks step 4 of the 5" in caplog.text
    assert f"going on from {folder / PREVIOUS}, step 3" in caplog.text


def test_a_run_is_trained_by_one_process_at_a_time_and_the_other_ranks_of_it(tmp_path, monkeypatch):
    of = config(tmp_path)
    with Session(of, console=QUIET):
        for resume in (False, True):
            with pytest.raises(InputError, match=r"line is being written to by another process: wait for it to end"):
                run(of, resume=resume)
        monkeypatch.setenv("LOCAL_RANK", "1")
        with pytest.raises(InputError, match="another process"):
            Session(of, console=QUIET).__enter__()
        with Session(of, console=QUIET, devices=2) as other:
            assert other.checkpoint is None
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(InputError, match="another process"):
            Session(of, console=QUIET, devices=2).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_removed_while_the_run_goes_is_one_line(tmp_path):
    of = config(tmp_path / "runs")

    def removing():
        shutil.rmtree(of.run_folder(), ignore_errors=True)
        return False

    with pytest.raises(InputError, match=r"cannot write .*/line/[\w.]+: No such file or directory"):
        run(of, should_stop=removing)


@pytest.mark.parametrize("name", ["last.pth", "best_model.pth", "history.csv", "metrics.jsonl"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(tmp_path, monkeypatch, whole, name):
    of = config(tmp_path, max_steps=6)
    real = os.fsync

    def full(descriptor):
        at = Path(f"/proc/self/fd/{descriptor}").readlink()
        records = of.run_folder() / "metrics.jsonl"
        if at.name.endswith(name) and records.exists() and records.stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught:
        run(of)
    assert str(caught.value).startswith(f"cannot write {of.run_folder() / name}: No space left on device")
    monkeypatch.undo()
    assert {path.name for path in of.run_folder().iterdir() if path.name.startswith(".")} == set()
    assert run(of, resume=True)
    assert losses(of) == whole


def test_two_deterministic_runs_are_equal_bit_for_bit_and_leave_torch_as_it_was(tmp_path):
    used = []

    def noted(step):
        used.append(torch.are_deterministic_algorithms_enabled())
        return {}

    first, second = config(tmp_path / "first"), config(tmp_path / "second")
    assert run(first, deterministic=True, probe=noted)
    assert run(second, deterministic=True, probe=noted)
    assert compare_logs(first.run_folder(), second.run_folder(), console=QUIET)
    assert set(used) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_does_not_repeat_ends_a_deterministic_run_with_one_line_and_it_goes_on_without(tmp_path):
    of = config(tmp_path)

    def unrepeatable(step):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
        return {}

    with pytest.raises(InputError, match="the operation put_ has no deterministic kernel"):
        run(of, deterministic=True, probe=unrepeatable)
    assert not (of.run_folder() / ".lock").exists()
    assert run(of, resume=True, probe=unrepeatable)
    assert len(losses(of)) == of.training.max_steps
