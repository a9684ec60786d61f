import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn

from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.engine.loop import LoopSettings, Trainer
from voxelwave.engine.run_log import RunLog, read_metrics
from voxelwave.engine.runtime import make_fabric
from voxelwave.engine.signals import Stopped
from voxelwave.errors import InputError, ProcessFault
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.common.run_folder import open_run


class Numbers(NamedTuple):
    """What the loop asks of a batch, and no more: it may hold volumes, images or k-space."""

    modality: str = "mri"
    files: tuple[str, ...] = ("a", "b")


def trainer(folder, groups, *, steps, **options):
    """Train parameters towards 0, four steps an epoch."""
    folder.mkdir()
    model = nn.ParameterList([parameter for group in groups for parameter in group["params"]])
    fabric = make_fabric(device="cpu")
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(groups, lr=1.0))

    def objective(batch, index):
        loss = sum(parameter.square().sum() for parameter in model)
        return StepOutput(loss, {"loss": loss.detach()})

    settings = LoopSettings(steps, 4, clip_norm=1e9, checkpoint_every_epochs=0, probe_every_steps=1, samples="images")

    def rate(step):
        return 0.1 * (step + 1)

    return Trainer(fabric, wrapped, optimizer, objective, rate, folder, {}, settings=settings, **options)


def run(of, stop=lambda: False):
    console = Console(quiet=True)
    total = of.settings.total_steps
    with RunLog(of.folder, start_step=0, total_steps=total, console=console, tensorboard=False) as log:
        return of.run(iter(Numbers, None), log, stop)


def test_a_group_learns_at_its_own_share_of_the_rate(tmp_path):
    whole, half = (nn.Parameter(torch.tensor([3.0])) for _ in range(2))
    of = trainer(tmp_path / "run", [{"params": [whole]}, {"params": [half], "lr_scale": 0.5}], steps=3)
    assert run(of)
    # x -> x - rate * 2 x
    assert whole.item() == pytest.approx(3 * (1 - 0.2) * (1 - 0.4) * (1 - 0.6))
    assert half.item() == pytest.approx(3 * (1 - 0.1) * (1 - 0.2) * (1 - 0.3))
    assert [group["lr"] for group in of.optimizer.param_groups] == pytest.approx([0.3, 0.15])


def test_the_best_weights_are_those_of_the_lowest_score(tmp_path):
    validated = {3: 0.2, 7: 0.7, 11: 0.6}
    parameter = nn.Parameter(torch.tensor([1.0]))
    of = trainer(
        tmp_path / "run",
        [{"params": [parameter]}],
        steps=12,
        probe=lambda step: {"validation_dice": validated[step]} if step in validated else {},
        score=lambda row: -row["validation_dice"],
    )
    assert run(of)
    best = load_checkpoint(tmp_path / "run" / "best_model.pth")
    assert (best["step"], best["epoch"]) == (8, 2)
    assert not list((tmp_path / "run").glob("checkpoint_epoch_*"))
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert history[0].split(",")[-1] == "validation_dice"
    assert [line.split(",")[-1] for line in history[1:]] == ["0.2", "0.7", "0.6"]


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_the_checkpoint_of_an_epoch_says_its_loss_and_holds_the_optimiser_where_asked(tmp_path, with_optimizer):
    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=4)
    of.settings = replace(of.settings, checkpoint_every_epochs=1, checkpoint_optimizer=with_optimizer)
    run(of)
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint_epoch_1.pth")
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert checkpoint["epoch"] == 1
    assert checkpoint["loss"] == pytest.approx(sum(losses) / 4)
    assert ("optimizer" in checkpoint) == with_optimizer


def test_scores_that_are_never_below_infinity_keep_no_best_weights(tmp_path):
    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=4, score=lambda _: float("inf"))
    assert run(of)
    assert not (tmp_path / "run" / "best_model.pth").exists()
    assert (tmp_path / "run" / "last.pth").exists()


def test_records_say_how_many_samples_a_second_by_the_name_that_the_job_gives_them(tmp_path):
    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.tensor([1.0]))]}], steps=2)
    assert run(of)
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first["images_per_second"] > 0
    assert first.keys() == second.keys()
    assert not {name for name in first if "volume" in name}


def without_batch(number):
    """Batches, and in place of one the news that the process that makes them is dead."""
    for _ in range(number):
        yield Numbers()
    raise ProcessFault("data worker 7 was killed by SIGKILL")


def interrupted(of, batches):
    with RunLog(of.folder, start_step=0, total_steps=99, console=Console(quiet=True), tensorboard=False) as log:
        return of.run(batches, log, lambda: False)


def test_a_worker_that_is_lost_between_two_steps_costs_none(tmp_path):
    parameter = nn.Parameter(torch.tensor([1.0]))
    of = trainer(tmp_path / "run", [{"params": [parameter]}], steps=8)
    with pytest.raises(ProcessFault, match=r"^data worker 7 was killed by SIGKILL; saved at step 6, go on with --res"):
        interrupted(of, without_batch(6))
    last = load_checkpoint(tmp_path / "run" / "last.pth")
    assert last["step"] == 6
    assert torch.equal(last["model"]["0"], parameter)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 6


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8)
    with pytest.raises(ProcessFault, match="nothing was saved yet"):
        interrupted(of, without_batch(0))
    assert not (tmp_path / "run" / "last.pth").exists()


def test_interrupted_in_the_forward_pass_the_state_is_that_of_the_last_whole_step(tmp_path):
    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8)
    inner = of.objective

    def objective(batch, index):
        if index == 3:
            raise Stopped(15)
        return inner(batch, index)

    of.objective = objective
    assert not interrupted(of, iter(Numbers, None))
    assert load_checkpoint(tmp_path / "run" / "last.pth")["step"] == 3


def test_asked_to_stop_between_two_micro_batches_the_step_is_left_for_later(tmp_path):
    parameter = nn.Parameter(torch.tensor([1.0]))
    of = trainer(tmp_path / "run", [{"params": [parameter]}], steps=8)
    of.settings = replace(of.settings, accumulate=4)
    inner, calls = of.objective, []

    def objective(batch, index):
        calls.append(index)
        return inner(batch, index)

    of.objective = objective
    assert not run(of, stop=lambda: len(calls) >= 6)
    assert calls == [0, 1, 2, 3, 4, 5]
    last = load_checkpoint(tmp_path / "run" / "last.pth")
    assert last["step"] == 1
    assert last["model"]["0"].item() == pytest.approx(1 - 0.1 * 2)  # one step at the rate of the first


@pytest.mark.parametrize("where", ["probe", "after_step"])
def test_a_step_of_which_only_the_weights_are_there_is_not_saved(tmp_path, where):
    def interrupt(step=5):
        if step == 5 and of.state.step == 5:
            raise Stopped(15)
        return {}

    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8, **{where: interrupt})
    with pytest.raises(Stopped, match="SIGTERM; go on with --resume from the checkpoint before"):
        interrupted(of, iter(Numbers, None))
    assert load_checkpoint(tmp_path / "run" / "last.pth")["step"] == 4


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), OSError(5, "I/O error"), InputError("no file left")])
def test_whatever_ends_a_run_the_last_whole_step_is_kept_and_said(tmp_path, error):
    def batches():
        yield from [Numbers()] * 3
        raise error

    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8)
    with pytest.raises(type(error)) as raised:
        interrupted(of, batches())
    told = str(raised.value) if isinstance(error, InputError) else " ".join(raised.value.__notes__)
    assert "saved at step 3, go on with --resume" in told
    assert load_checkpoint(tmp_path / "run" / "last.pth")["step"] == 3


def test_what_cannot_be_saved_hides_nothing_of_what_ended_the_run(tmp_path, monkeypatch):
    def batches():
        yield from [Numbers()] * 3
        raise InputError("no file left")

    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8)
    monkeypatch.setattr(of, "save", lambda log: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match=r"^no file left; nothing was saved yet$"):
        interrupted(of, batches())


def test_what_is_wrong_before_the_first_step_is_said_as_it_is(tmp_path):
    def batches():
        raise InputError("no file")
        yield

    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8)
    with pytest.raises(InputError, match=r"^no file$"):
        interrupted(of, batches())


def test_a_run_that_is_told_to_end_where_it_was_stopped_ends_its_epoch_once(tmp_path):
    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8)
    assert not run(of, stop=lambda: of.state.step == 3)
    assert not (of.folder / "best_model.pth").exists()
    of.settings = replace(of.settings, total_steps=3, checkpoint_every_epochs=1)
    for again in (False, True):
        with RunLog(of.folder, start_step=3, total_steps=3, console=Console(quiet=True), tensorboard=False) as log:
            assert of.run(iter(()), log, lambda: False)
        assert (of.folder / "history.csv").read_text().splitlines()[1].startswith("1,2,")
        assert load_checkpoint(of.folder / "best_model.pth")["step"] == 3
        assert (of.folder / "checkpoint_epoch_1.pth").exists() is not again
        (of.folder / "checkpoint_epoch_1.pth").unlink(missing_ok=True)


def test_what_is_no_lost_process_is_raised_as_it_is(tmp_path):
    of = trainer(tmp_path / "run", [{"params": [nn.Parameter(torch.ones(1))]}], steps=8)

    def objective(batch, index):
        raise RuntimeError("Connection of two tensors of other shapes")

    of.objective = objective
    with pytest.raises(RuntimeError, match="Connection of two"):
        interrupted(of, iter(Numbers, None))


def test_a_step_that_fp16_skips_is_recorded_and_gone_on_from(tmp_path):
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    # The scaler of a GPU, on the CPU.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler=scaler))
    model = nn.ParameterList([nn.Parameter(torch.ones(1))])
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def objective(batch, index):
        loss = model[0].float().sum() * (1e36 if index == 0 else 1.0)  # finite, until it is scaled
        return StepOutput(loss, {"loss": loss.detach()})

    settings = LoopSettings(4, 4, checkpoint_every_epochs=0)
    of = Trainer(fabric, wrapped, optimizer, objective, lambda step: 0.1, tmp_path, {"config": {}}, settings=settings)
    assert not run(of, stop=lambda: of.state.step == 2)
    norms = [record["grad_norm"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    assert not math.isfinite(norms[0])
    assert math.isfinite(norms[1])
    generation = open_run(tmp_path, resume=True)
    assert generation.checkpoint["step"] == 2
