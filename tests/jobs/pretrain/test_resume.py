"""A run that was interrupted goes on to what the uninterrupted one computes, to the last bit."""

import csv

import nibabel
import numpy as np
import pytest
import torch

from support.pretraining_runs import QUIET, copy_of, exact, named, records, weights
from support.stopping import stop_after
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.errors import InputError
from voxelwave.jobs.pretrain.run import pretrain

pytestmark = pytest.mark.usefixtures("undrawn")


def losses_of_epochs(config):
    with (config.run_folder() / "history.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(whole, raw_config, stop):
    parts = named(raw_config, "parts")
    assert not pretrain(parts, console=QUIET, should_stop=stop_after(stop))
    assert len(records(parts)) == stop
    assert pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(whole)
    ours, theirs = weights(parts), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses_of_epochs(parts) == losses_of_epochs(whole)


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
    of_these, parts = named(raw_config, "whole"), named(raw_config, "parts")
    pretrain(of_these, console=QUIET)
    pretrain(parts, console=QUIET, should_stop=stop_after(5))
    pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(of_these)


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing is saved."""


def test_a_kill_after_the_last_checkpoint_loses_nothing_but_time(whole, raw_config):
    parts = named(raw_config, "parts", checkpoint_every_steps=4)
    at_step_5 = stop_after(5)

    def killed():
        if at_step_5():
            raise Killed
        return False

    with pytest.raises(Killed):
        pretrain(parts, console=QUIET, should_stop=killed)
    with (parts.run_folder() / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epo')  # a line cut while being written
    assert load_checkpoint(parts.run_folder() / "last.pth")["step"] == 4
    pretrain(parts, resume=True, console=QUIET)
    assert exact(parts) == exact(whole)


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


def test_resume_refuses_a_volume_whose_values_have_changed_and_names_it(raw_config, heads, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in (heads / "mri").iterdir():
        nibabel.load(file).to_filename(folder / file.name.replace(".nii.gz", ".nii"))
    raw_config["data"]["sources"][0]["path"] = str(folder)
    config = named(raw_config, "contents")
    pretrain(config, console=QUIET, should_stop=stop_after(2))
    changed = sorted(folder.iterdir())[2]
    image = nibabel.load(changed)
    values = np.asarray(image.dataobj).copy()
    values[values.shape[0] // 2] += 1
    nibabel.Nifti1Image(values, None, image.header).to_filename(changed)
    with pytest.raises(InputError, match=f"{changed.name} has changed since the run was begun"):
        pretrain(config, resume=True, console=QUIET)


def test_resume_refuses_another_model_and_names_the_key(whole, tmp_path):
    config = copy_of(whole, tmp_path)
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


def test_a_finished_run_goes_on_with_more_epochs(whole, tmp_path):
    config = copy_of(whole, tmp_path)
    config.training.epochs = 3
    assert pretrain(config, resume=True, console=QUIET)
    assert [record["step"] for record in records(config)] == list(range(18))
    assert exact(config)[:12] == exact(whole)
