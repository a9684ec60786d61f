import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from voxelwave import load_backbone, load_config
from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.errors import DivergedError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.run import pretrain

QUIET = Console(quiet=True)
EXACT = (
    "step",
    "epoch",
    "modality",
    "loss",
    "reconstruction",
    "contrastive",
    "easy",
    "hard",
    "learning_rate",
    "grad_norm",
)


def records(config):
    return [json.loads(line) for line in (config.run_folder() / "metrics.jsonl").read_text().splitlines()]


def exact(config):
    return [tuple(record[name] for name in EXACT) for record in records(config)]


def weights(config):
    return load_checkpoint(config.run_folder() / "last.pth")["model"]


def stop_after(steps):
    taken = iter(range(1, 10**6))
    return lambda: next(taken) == steps


def named(raw, name, **training):
    return check_config({**raw, "run": {**raw["run"], "name": name}, "training": {**raw["training"], **training}})


def test_a_run_leaves_what_was_promised(raw_config):
    raw_config["run"]["tensorboard"] = True
    config = check_config(raw_config)
    assert pretrain(config, console=QUIET)
    folder = config.run_folder()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.yaml", "metrics.jsonl", "history.csv", "tensorboard", "figures", "backbone.json"),
        *("checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth", "best_model.pth", "last.pth", "backbone.safetensors"),
    }
    assert {path.name for path in (folder / "figures").iterdir()} == {"losses.png", "reconstructions.png"}
    assert any((folder / "tensorboard").iterdir())
    lines = records(config)
    promised = {*EXACT, "volumes_per_second", "data_wait_s"}
    assert all(promised <= line.keys() for line in lines)
    assert [line["step"] for line in lines] == list(range(12))
    assert [line["modality"] for line in lines] == ["mri", "ct"] * 6
    assert all(line["contrastive"] > 0 for line in lines)
    assert "effective_rank_mri" in lines[4]
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    first = [line["loss"] for line in lines if line["epoch"] == 1]
    assert float(rows[0]["loss"]) == pytest.approx(sum(first) / len(first))
    # The resolved file is a config by itself, and the backbone is that of the last step.
    assert load_config(folder / "config.yaml") == config
    backbone = load_backbone(folder).backbone
    trained = {
        name.removeprefix("backbone."): value for name, value in weights(config).items() if name.startswith("backbone.")
    }
    assert all(torch.equal(value, trained[name]) for name, value in backbone.state_dict().items())
    assert backbone(torch.rand(1, 3, 24, 16, 32)).shape == (1, 24, 6, 4, 8)


def test_the_best_model_is_that_of_the_lowest_epoch(raw_config):
    config = named(raw_config, "best", epochs=3)
    pretrain(config, console=QUIET)
    with (config.run_folder() / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert load_checkpoint(config.run_folder() / "best_model.pth")["epoch"] == losses.index(min(losses)) + 1


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(raw_config, stop):
    whole, parts = named(raw_config, "whole"), named(raw_config, "parts")
    pretrain(whole, console=QUIET)
    assert not pretrain(parts, console=QUIET, should_stop=stop_after(stop))
    assert len(records(parts)) == stop
    assert pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(whole)
    ours, theirs = weights(parts), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with (parts.run_folder() / "history.csv").open() as ours, (whole.run_folder() / "history.csv").open() as theirs:
        assert [row["loss"] for row in csv.DictReader(ours)] == [row["loss"] for row in csv.DictReader(theirs)]


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"accumulate": 2}},
        {"training": {"precision": "bf16"}},
        {"model": {"target": "features", "features": {"ema_momentum": 0.9, "layer_norm": True}}},
        {"data": {"num_workers": 2, "cached_volumes": 4}},
    ],
    ids=["accumulation", "bf16", "teacher", "workers"],
)
def test_resume_is_exact_with(raw_config, change):
    for section, values in change.items():
        raw_config[section].update(values)
    whole, parts = named(raw_config, "whole"), named(raw_config, "parts")
    pretrain(whole, console=QUIET)
    pretrain(parts, console=QUIET, should_stop=stop_after(5))
    pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(whole)


def test_a_kill_after_the_last_checkpoint_loses_nothing_but_time(raw_config):
    whole, parts = named(raw_config, "whole"), named(raw_config, "parts", checkpoint_every_steps=4)
    pretrain(whole, console=QUIET)

    at_step_5 = stop_after(5)

    def killed():
        if at_step_5():
            raise MemoryError
        return False

    with pytest.raises(MemoryError):
        pretrain(parts, console=QUIET, should_stop=killed)
    with (parts.run_folder() / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epo')  # a line cut while being written
    assert load_checkpoint(parts.run_folder() / "last.pth")["step"] == 4
    pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(whole)


def test_losses_do_not_depend_on_the_number_of_workers(raw_config):
    alone, helped = named(raw_config, "alone", epochs=1), named(raw_config, "helped", epochs=1)
    helped.data.num_workers = 2
    pretrain(alone, console=QUIET)
    pretrain(helped, console=QUIET)
    assert exact(alone) == exact(helped)


def test_a_run_that_is_there_is_not_overwritten(raw_config):
    config = named(raw_config, "twice", epochs=1)
    pretrain(config, console=QUIET)
    before = (config.run_folder() / "last.pth").read_bytes()
    with pytest.raises(ValueError, match="holds a run already: go on with --resume"):
        pretrain(config, console=QUIET)
    assert (config.run_folder() / "last.pth").read_bytes() == before


def test_a_run_without_its_last_checkpoint_is_not_overwritten_either(raw_config):
    config = named(raw_config, "headless", epochs=1)
    pretrain(config, console=QUIET)
    (config.run_folder() / "last.pth").unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        pretrain(config, console=QUIET)


def test_resume_refuses_other_volumes(raw_config, heads, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in (heads / "mri").iterdir():
        (folder / file.name).symlink_to(file)
    raw_config["data"]["sources"][0]["path"] = str(folder)
    config = named(raw_config, "changed")
    pretrain(config, console=QUIET, should_stop=stop_after(2))
    next(folder.iterdir()).unlink()
    resolved = (config.run_folder() / "config.yaml").read_text()
    config.training.epochs = 9
    with pytest.raises(ValueError, match=r"its volumes were \{'mri': '5:.*are \{'mri': '4:"):
        pretrain(config, resume=True, console=QUIET)
    assert (config.run_folder() / "config.yaml").read_text() == resolved


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("loss", {"reconstruction": {"easy_weight": -1}}, "weights must be 0 or more"),
        ("loss", {"reconstruction": {"min_std": 0}}, "min_std must be above 0"),
        ("loss", {"chunk_size": 0}, "chunk_size must be at least 1"),
        ("loss", {"temperature": float("nan")}, "finite number"),
        ("data", {"view_share": [0.9, 0.5]}, "the first share must not be above the second"),
        ("data", {"crop_size": [4, 4, 4]}, "do not go together: .*one mask block"),
        ("data", {"modalities": {"foo": {}}}, "unknown modality 'foo' in 'data.modalities'"),
        ("masking", {"block_side": 100}, "do not go together"),
        ("training", {"batch_size": {"mri": 2, "ct": 2, "pet": 3}}, "unknown modality 'pet' in 'training.batch_size'"),
        ("training", {"learning_rate": float("inf")}, "finite number"),
        ("training", {"precision": "fp16", "device": "cpu"}, "fp16 needs a GPU"),
        ("run", {"name": ".."}, "key 'run.name'"),
    ],
)
def test_settings_that_cannot_work_are_one_line_before_any_data_is_read(raw_config, section, values, message):
    raw_config["data"]["sources"][0]["path"] = "nowhere"
    raw_config.setdefault(section, {}).update(values)
    with pytest.raises(ValueError, match=message) as caught:
        pretrain(check_config(raw_config), console=QUIET)
    assert "\n" not in str(caught.value)


def test_resume_refuses_another_model_and_names_the_key(raw_config):
    config = named(raw_config, "other", epochs=1)
    pretrain(config, console=QUIET)
    config.model.decoder_width = 16
    with pytest.raises(ValueError, match=r"'model.decoder_width' was 8 and is 16 now"):
        pretrain(config, resume=True, console=QUIET)


def test_a_run_goes_on_with_another_learning_rate_as_a_diverged_one_needs(raw_config):
    config = named(raw_config, "slower")
    pretrain(config, console=QUIET, should_stop=stop_after(5))
    before = exact(config)
    config.training.learning_rate = 1e-4
    assert pretrain(config, resume=True, console=QUIET)
    after = exact(config)
    assert after[:5] == before
    assert records(config)[5]["learning_rate"] < 1e-4


def test_a_finished_run_goes_on_with_more_epochs(raw_config):
    config = named(raw_config, "longer", epochs=1)
    pretrain(config, console=QUIET)
    config.training.epochs = 2
    assert pretrain(config, resume=True, console=QUIET)
    assert [record["step"] for record in records(config)] == list(range(12))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_files(raw_config, monkeypatch):
    config = named(raw_config, "nan")
    forward = "voxelwave.objectives.masked_modeling.MaskedModeling.forward"
    calls = iter(range(100))
    original = build_pretrainer(config).__class__.forward

    def forward_then_nan(self, volume, generator):
        loss, logs = original(self, volume, generator)
        return StepOutput(loss * (float("nan") if next(calls) == 7 else 1.0), logs)

    monkeypatch.setattr(forward, forward_then_nan)
    with pytest.raises(DivergedError, match=r"the loss is nan at step 7 on .*ct/head_0.*\.nii\.gz") as caught:
        pretrain(config, console=QUIET)
    assert "\n" not in str(caught.value)
    # What was saved at the end of the epoch before is still good.
    assert load_checkpoint(config.run_folder() / "last.pth")["step"] == 6
    monkeypatch.setattr(forward, original)
    assert pretrain(config, resume=True, console=QUIET)


def test_max_steps_ends_the_run(raw_config):
    config = named(raw_config, "short", max_steps=4)
    assert pretrain(config, console=QUIET)
    assert len(records(config)) == 4
    assert (config.run_folder() / "backbone.safetensors").exists()


def test_left_out_files_are_named_once_and_the_run_goes_on(raw_config, heads, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for file in (heads / "mri").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "page.nii").write_text("<html></html>")
    (folder / "head_labels.nii.gz").symlink_to(next((heads / "labels").glob("*.nii.gz")))
    raw_config["data"]["sources"][0]["path"] = str(folder)
    output = io.StringIO()
    assert pretrain(named(raw_config, "mixed", epochs=1), console=Console(file=output, width=300))
    lines = [line for line in output.getvalue().splitlines() if line.startswith("left out")]
    assert len(lines) == 2
    assert any("page.nii" in line for line in lines)
    assert any("head_labels.nii.gz" in line for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_exits_cleanly_at_the_step_it_is_in(raw_config, tmp_path, number):
    raw_config["data"]["num_workers"] = 1
    raw_config["training"]["epochs"] = 40
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(raw_config))
    config = load_config(file)
    command = [sys.executable, "-m", "voxelwave", "pretrain", str(file)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (config.run_folder() / "checkpoint_epoch_1.pth").exists():
        time.sleep(0.02)
    # As Ctrl-C, timeout and batch systems do: the workers get it too.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "go on with --resume" in output
    assert "Traceback" not in output
    step = load_checkpoint(config.run_folder() / "last.pth")["step"]
    assert 6 <= step < 240
    assert len(records(config)) == step
    whole = named(raw_config, "whole")
    pretrain(whole, console=QUIET, should_stop=stop_after(step))
    assert exact(config) == exact(whole)


def test_two_processes_train_one_model(raw_config, tmp_path):
    raw_config["training"] |= {"devices": 2, "device": "cpu", "epochs": 1}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(raw_config))
    command = [sys.executable, "-m", "voxelwave", "pretrain", str(file)]
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        code = process.wait(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.skip("two processes did not find each other within 150 s on this machine")
    said = (tmp_path / "output.txt").read_text()
    assert code == 0, said
    assert "Traceback" not in said
    config = load_config(file)
    assert load_backbone(config.run_folder())
    # 5 MRI volumes in batches of 2 × 2: two steps of each modality show all of them.
    assert [record["modality"] for record in records(config)] == ["mri", "ct"] * 2
    # The first rank alone would draw the same batches and masks as a run of one process, but another mean gradient.
    alone = named(raw_config, "alone", devices=1, max_steps=1)
    pretrain(alone, console=QUIET)
    assert records(alone)[0]["grad_norm"] != records(config)[0]["grad_norm"]
    assert records(alone)[0]["loss"] == pytest.approx(records(config)[0]["loss"])
