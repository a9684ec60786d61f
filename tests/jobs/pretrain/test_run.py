"""What a pretraining run leaves, what it refuses, and what ends it."""

import csv
import io
from pathlib import Path

import pytest
import torch

from support.pretraining_runs import EXACT, QUIET, copy_of, exact, named, records, weights
from support.stopping import stop_after
from voxelwave import load_backbone, load_config
from voxelwave.contracts import StepOutput
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.errors import DivergedError, InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.pretrain.config import check_config
from voxelwave.jobs.pretrain.pretrainer import build_pretrainer
from voxelwave.jobs.pretrain.run import pretrain

pytestmark = pytest.mark.usefixtures("undrawn")


def epochs(config):
    with (config.run_folder() / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_what_was_promised(whole):
    folder = whole.run_folder()
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "history.csv", "tensorboard", "figures", "backbone.json"),
        *("checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth", "best_model.pth", "backbone.safetensors"),
        *("last.pth", "last.previous.pth"),
    }
    assert {path.name for path in (folder / "figures").iterdir()} == {"losses.png", "reconstructions.png"}
    assert any((folder / "tensorboard").iterdir())


def test_every_step_has_a_record_and_the_modalities_take_turns(whole):
    lines = records(whole)
    promised = {*EXACT, "volumes_per_second", "data_wait_s"}
    assert all(promised <= line.keys() for line in lines)
    assert [line["step"] for line in lines] == list(range(12))
    assert [line["modality"] for line in lines] == ["mri", "ct"] * 6
    assert all(line["contrastive"] > 0 for line in lines)
    assert "effective_rank_mri" in lines[4]


def test_the_history_has_the_mean_of_every_epoch(whole):
    rows = epochs(whole)
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    for row in rows:
        losses = [line["loss"] for line in records(whole) if line["epoch"] == int(row["epoch"])]
        assert float(row["loss"]) == pytest.approx(sum(losses) / len(losses))


def test_the_configuration_that_is_left_is_complete(whole):
    assert load_config(whole.run_folder() / "config.yaml") == whole


def test_the_backbone_that_is_left_is_that_of_the_last_step(whole):
    backbone = load_backbone(whole.run_folder()).backbone
    trained = {
        name.removeprefix("backbone."): value for name, value in weights(whole).items() if name.startswith("backbone.")
    }
    assert all(torch.equal(value, trained[name]) for name, value in backbone.state_dict().items())
    assert backbone(torch.rand(1, 3, 24, 16, 32)).shape == (1, 24, 6, 4, 8)


def test_the_best_model_is_that_of_the_lowest_epoch(raw_config):
    config = named(raw_config, "best", epochs=3)
    pretrain(config, console=QUIET)
    losses = [float(row["loss"]) for row in epochs(config)]
    assert load_checkpoint(config.run_folder() / "best_model.pth")["epoch"] == losses.index(min(losses)) + 1


def test_a_part_of_an_epoch_is_the_best_only_where_there_is_no_whole_one(raw_config):
    def best(max_steps, **more):
        config = named(raw_config, "part", epochs=9, learning_rate=1e-9, max_steps=max_steps)
        assert pretrain(config, console=QUIET, **more)
        return load_checkpoint(config.run_folder() / "best_model.pth")["step"]

    assert best(1) == 1  # an easy step of MRI
    assert best(6, resume=True) == 6
    assert best(7, resume=True) == 6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"data": {"crop_size": [20000] * 3}}, r"'data.crop_size': .* has more than 1e\+09 voxels"),
        ({"model": {"backbone": {"wavelet_levels": 3}}}, r"'model.backbone.wavelet_levels': blocks of 3 .* at most 2"),
    ],
)
def test_a_size_for_which_there_is_no_memory_is_one_line(raw_config, setting, message):
    section, ((key, value),) = next(iter(setting)), next(iter(setting.values())).items()
    given = raw_config[section][key] | value if isinstance(value, dict) else value
    with pytest.raises(InputError, match=message):
        pretrain(named({**raw_config, section: {**raw_config[section], key: given}}, "large"), console=QUIET)
    assert not (Path(raw_config["run"]["out_dir"]) / "large" / "last.pth").exists()


def test_losses_do_not_depend_on_the_number_of_workers(whole, raw_config):
    helped = named(raw_config, "helped")
    helped.data.num_workers = 2
    pretrain(helped, console=QUIET, should_stop=stop_after(6))
    assert exact(helped) == exact(whole)[:6]


def test_a_run_that_is_there_is_not_overwritten(whole, tmp_path):
    config = copy_of(whole, tmp_path)
    before = (config.run_folder() / "last.pth").read_bytes()
    with pytest.raises(ValueError, match="holds a run already: go on with --resume"):
        pretrain(config, console=QUIET)
    assert (config.run_folder() / "last.pth").read_bytes() == before


def test_a_run_without_its_last_checkpoint_is_not_overwritten_either(whole, tmp_path):
    config = copy_of(whole, tmp_path)
    (config.run_folder() / "last.pth").unlink()
    with pytest.raises(ValueError, match="holds a run already"):
        pretrain(config, console=QUIET)


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
