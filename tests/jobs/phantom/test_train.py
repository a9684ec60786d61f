import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from support.command import error_of, voxelwave
from support.stopping import stop_after
from voxelwave import cli
from voxelwave.engine.checkpoint import load_checkpoint, save_checkpoint
from voxelwave.engine.run_log import read_metrics
from voxelwave.engine.schedule import stalled
from voxelwave.errors import DivergedError, InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.phantom import train
from voxelwave.jobs.phantom.config import DESCRIBED, check_phantom_config, load_phantom_config
from voxelwave.jobs.phantom.data import AllBatches, PhantomSteps, triplets
from voxelwave.jobs.phantom.evaluate import embed_phantoms, evaluate_phantoms
from voxelwave.jobs.phantom.train import judged, load_phantom_model, train_phantoms

QUIET = Console(quiet=True)
CONFIGS = Path(__file__).parents[3] / "configs" / "phantom"
TINY = (
    "--epochs 1 --train-length 8 --val-length 4 --batch-size 4 --num-workers 0 --image-size 32 --n-coils 2 --lr 3e-4 "
)
TINY += "--device cpu"


def config(tmp_path, name="run", **sections):
    raw = {
        "run": {"name": name, "out_dir": str(tmp_path), "tensorboard": False},
        "data": {"train_length": 18, "val_length": 6, "image_size": 32, "num_coils": 2},
        "model": {"name": "mri_embedding", "embed_dim": 8, "widths": [8, 8]},
        "loss": {"name": "triplet"},
        "training": {"epochs": 3, "batch_size": 4, "device": "cpu"},
    }
    for section, values in sections.items():
        raw[section] |= values
    return check_phantom_config(raw)


def measured(of):
    """The records without what depends on the clock."""
    timed = ("phantoms_per_second", "data_wait_s")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read_metrics(of.run_folder() / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    of = config(tmp_path_factory.mktemp("phantom"))
    assert train_phantoms(of, console=QUIET)
    return of


def test_a_run_leaves_weights_history_curves_and_scores(trained):
    folder = trained.run_folder()
    for name in ("best_model.pth", "last.pth", "config.yaml", "history.csv", "results.json", "figures/curves.png"):
        assert (folder / name).stat().st_size > 0, name
    records = measured(trained)
    assert len(records) == 3 * 4  # 18 phantoms fill 4 batches of 4
    validated = [record for record in records if "validation_loss" in record]
    assert [record["step"] for record in validated] == [3, 7, 11]
    best = min(validated, key=lambda record: record["validation_loss"])
    results = json.loads((folder / "results.json").read_text())
    assert results["validation_recall_at_1"] == best["validation_recall_at_1"]
    assert load_checkpoint(folder / "best_model.pth")["epoch"] == best["epoch"]


@pytest.mark.parametrize("stopped_after", [2, 4, 9])
def test_a_resumed_run_has_the_numbers_of_one_that_was_not_interrupted(trained, tmp_path, stopped_after):
    of = config(tmp_path)
    assert not train_phantoms(of, console=QUIET, should_stop=stop_after(stopped_after))
    assert len(measured(of)) == stopped_after
    assert train_phantoms(of, resume=True, console=QUIET)
    assert measured(of) == measured(trained)
    first, second = (load_checkpoint(one.run_folder() / "last.pth")["model"] for one in (of, trained))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_worker_processes_change_no_number(trained, tmp_path):
    of = config(tmp_path, data={"num_workers": 2})
    assert train_phantoms(of, console=QUIET)
    assert measured(of) == measured(trained)


def test_nor_do_they_where_sizes_are_odd_and_a_model_draws_numbers(tmp_path):
    """Of 43² pixels are a vector's length no whole number, in which a processor computes."""
    odd = {"data": {"image_size": 43}, "model": {"dropout": 0.3}, "training": {"epochs": 2}}
    whole, workers, stopped = (config(tmp_path, name=name, **odd) for name in ("whole", "workers", "stopped"))
    workers.data.num_workers = 2
    assert train_phantoms(whole, console=QUIET)
    assert train_phantoms(workers, console=QUIET)
    assert measured(workers) == measured(whole)
    assert not train_phantoms(stopped, console=QUIET, should_stop=stop_after(6))
    assert train_phantoms(stopped, resume=True, console=QUIET)
    assert measured(stopped) == measured(whole)


def test_a_batch_does_not_depend_on_the_number_of_threads(tmp_path):
    of = config(tmp_path, data={"image_size": 130, "num_coils": 8})
    batches = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        steps = PhantomSteps(triplets(of.data, seed=0, validation=False), batch_size=4, seed=0)
        batches.append(steps[0].images)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(*batches)


def test_every_epoch_has_an_order_of_its_own_and_no_phantom_twice(tmp_path):
    of = config(tmp_path)
    steps = PhantomSteps(triplets(of.data, seed=0, validation=False), batch_size=4, seed=0)
    epochs = [[steps[step].numbers[0].tolist() for step in range(4 * epoch, 4 * epoch + 4)] for epoch in (0, 1)]
    for batches in epochs:
        assert len({number for batch in batches for number in batch}) == 16
    assert epochs[0] != epochs[1]
    batch = steps[0]
    assert batch.images.shape == (12, 4, 32, 32)
    assert (batch.numbers[0] != batch.numbers[1]).all()


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_batches_that_are_kept_are_those_that_are_made(tmp_path, kept):
    held_out = triplets(config(tmp_path).data, seed=0, validation=True)
    batch_bytes = 3 * 2 * 4 * 32 * 32 * 4
    batches = AllBatches(held_out, batch_size=2, kept_bytes=kept * batch_bytes)
    first, second = list(batches), list(batches)
    for start, one, again in zip((0, 2, 4), first, second, strict=True):
        assert torch.equal(one.images, held_out.triplets([start, start + 1]).flatten(0, 1))
        assert torch.equal(one.images, again.images)
        assert (one is again) == (start < 2 * kept)


def test_phantoms_of_validation_are_not_those_of_training(tmp_path):
    of = config(tmp_path).data
    seen, held_out = (triplets(of, seed=0, validation=validation).phantoms for validation in (False, True))
    train, validation = seen.anatomies(range(18)), held_out.anatomies(range(6))
    assert (train[:, None] - validation).abs().amax((2, 3)).min() > 0.05


def test_the_rate_falls_where_the_loss_of_validation_does_not_and_the_run_ends(tmp_path):
    of = config(
        tmp_path,
        # Nothing is learned at such a rate.
        training={"learning_rate": 1e-12, "epochs": 12, "patience": 4, "plateau": {"patience": 1, "floor": 0}},
    )
    assert train_phantoms(of, console=QUIET)
    rates = [record["learning_rate"] for record in measured(of)][::4]
    losses = [record["validation_loss"] for record in measured(of) if "validation_loss" in record]
    assert len(rates) == len(losses) < 12
    assert rates[:3] == pytest.approx([1e-12] * 3)
    assert rates[-1] <= 5e-13
    assert stalled(losses, 4)
    assert not stalled(losses[:-1], 4)


def test_of_equal_losses_that_one_is_better_whose_phantoms_lie_further_apart():
    def epoch(loss, d_pos, d_neg):
        return {"validation_loss": loss, "validation_d_pos": d_pos, "validation_d_neg": d_neg}

    assert judged(epoch(0.0, 0.25, 1.2)) < judged(epoch(0.0, 0.25, 1.0)) < judged(epoch(0.0, 0.3, 1.0))
    assert judged(epoch(0.0, 0.9, 1.0)) < judged(epoch(1e-5, 0.1, 1.4))


def test_mined_and_contrastive_losses_train_any_encoder(tmp_path):
    for number, (model, loss) in enumerate(
        [
            ({"name": "mri_embedding", "embed_dim": 8, "widths": [8, 8]}, {"name": "triplet", "mining": "semihard"}),
            ({"name": "timm", "encoder": "resnet18", "embed_dim": 8}, {"name": "ntxent"}),
        ]
    ):
        raw = config(tmp_path, name=f"run{number}").model_dump(mode="json") | {"model": model, "loss": loss}
        raw["training"] |= {"epochs": 1}
        of = check_phantom_config(raw)
        assert train_phantoms(of, console=QUIET)
        assert np.isfinite([record["loss"] for record in measured(of)]).all()
        assert load_phantom_model(of.run_folder())[1].model.name == model["name"]


def test_an_evaluation_has_the_scores_of_the_best_epoch(trained, tmp_path):
    scores = evaluate_phantoms(trained.run_folder(), tmp_path / "scores", console=QUIET)
    results = json.loads((trained.run_folder() / "results.json").read_text())
    for name in ("d_pos", "d_neg", "violations", "recall_at_1"):
        assert scores[name] == pytest.approx(results[f"validation_{name}"], abs=1e-5)
    assert {"NMI", "AMI", "ARI"} <= scores.keys()
    assert (tmp_path / "scores" / "maps.png").stat().st_size > 0
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == scores


def test_vectors_as_a_file_are_those_of_the_model(trained, tmp_path):
    embed_phantoms(trained.run_folder(), tmp_path / "vectors.npz", console=QUIET)
    written = np.load(tmp_path / "vectors.npz")
    assert written["number"].tolist() == list(range(18, 24))
    model, of = load_phantom_model(trained.run_folder() / "best_model.pth")
    first, second, _ = triplets(of.data, seed=0, validation=True).triplets([2, 5])
    for name, images in (("first", first), ("second", second)):
        np.testing.assert_allclose(written[name][[2, 5]], model.embed(images).numpy(), atol=1e-5)


def test_the_flags_of_the_command_are_keys_of_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # of who asks for it, it is kept
    flags = "--epochs 1 --train-length 8 --val-length 4 --batch-size 4 --image-size 32 --n-coils 3 --lr 0.001 "
    flags += "--margin 0.3 --num-workers 0 --device cpu --set loss.name=triplet"
    ended = voxelwave("phantom", "train", *flags.split(), "--out-dir", tmp_path / "my run")
    assert ended.code == 0, ended.err
    written = yaml.safe_load((tmp_path / "my run" / "config.yaml").read_text())
    assert (written["data"]["num_coils"], written["data"]["train_length"], written["data"]["image_size"]) == (3, 8, 32)
    assert (written["loss"]["margin"], written["training"]["learning_rate"]) == (0.3, 0.001)
    assert (written["training"]["plateau"]["factor"], written["model"]["embed_dim"]) == (0.5, 256)
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    ended = voxelwave("phantom", "preview", "--samples", 2, "--out-dir", tmp_path, "--max-rotation", 45)
    assert ended.code == 0, ended.err
    assert (tmp_path / "phantoms.png").read_bytes()[:4] == b"\x89PNG"
    ended = voxelwave("phantom", "preview", "--samples", 2, "--out-dir", tmp_path, "--prefix", "task1_")
    assert ended.code == 0, ended.err
    assert {path.name for path in tmp_path.glob("task1_*")} == {"task1_sample_0.png", "task1_sample_1.png"}


def test_evaluate_and_embed_from_the_command_line(trained, tmp_path):
    folder = trained.run_folder()
    for command in (["evaluate", folder, "--out", tmp_path / "e"], ["embed", folder, tmp_path / "v.npz"]):
        ended = voxelwave("phantom", *command)
        assert ended.code == 0, ended.err
    assert (tmp_path / "e" / "maps.png").stat().st_size > 0
    assert (tmp_path / "v.npz").stat().st_size > 0


def test_the_documented_short_line_of_foqus_train_trains_the_described_run_and_finds_the_phantoms(tmp_path):
    flags = "--epochs 1 --train-length 64 --val-length 32 --image-size 64 --n-coils 4"
    command = [Path(sys.executable).with_name("foqus-train"), *flags.split(), "--out-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best_model.pth").exists()
    assert json.loads((tmp_path / "run" / "results.json").read_text())["validation_recall_at_1"] > 0.9
    assert "nothing is told apart" not in done.stdout
    written, described = (load_phantom_config(of) for of in (tmp_path / "run/config.yaml", CONFIGS / "described.yaml"))
    assert (written.loss, written.model) == (described.loss, described.model)
    for same in ("rescan", "first", "second", "noise"):
        assert getattr(written.data, same) == getattr(described.data, same)
    for same in ("learning_rate", "weight_decay", "plateau", "patience"):
        assert getattr(written.training, same) == getattr(described.training, same)


def foqus_train(*flags):
    return voxelwave(*TINY.split(), *flags, program=cli.foqus_train)


def test_the_margin_of_foqus_train_acts(tmp_path):
    assert foqus_train("--margin", 1.9, "--out-dir", tmp_path / "run").code == 0
    for record in read_metrics(tmp_path / "run" / "metrics.jsonl"):  # of which no triplet keeps such a margin
        assert record["loss"] == pytest.approx(record["d_pos"] - record["d_neg"] + 1.9, abs=1e-5)


def test_a_second_foqus_train_in_a_folder_goes_on_or_says_which_option_differs(tmp_path):
    out = ("--out-dir", tmp_path / "run", "--prefix", "task3_")
    assert foqus_train(*out).code == 0
    names = {"task3_history.csv", "task3_loss_curves.png", "task3_best_model.pth"}
    assert names <= {path.name for path in (tmp_path / "run").iterdir()}
    assert foqus_train(*out).code == 0
    ended = foqus_train(*out, "--epochs", "2")
    assert ended.code == 0, ended.err
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 2 * 2
    assert (tmp_path / "run" / "task3_history.csv").read_text() == (tmp_path / "run" / "history.csv").read_text()
    error = error_of(foqus_train(*out, "--train-length", "12"))
    assert "--train-length was 8 and is 12 now; restore it, or choose another --out-dir" in error
    ended = voxelwave("phantom", "train", *TINY.split(), *out)
    assert "holds a run already: go on with --resume, or choose another --out-dir" in error_of(ended)


def test_an_option_without_effect_under_the_loss_is_an_error(tmp_path):
    error = error_of(voxelwave("phantom", "train", "--margin", 0.5, "--out-dir", tmp_path / "run"))
    assert "--margin has no effect under the loss 'ntxent'" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("loss", "identical"), [({"name": "triplet", "margin": 0.4}, 0.4), ({"name": "ntxent"}, math.log(8))]
)
def test_vectors_that_are_all_the_same_are_said_after_the_first_epoch(tmp_path, monkeypatch, loss, identical):
    def collapse(model, images):
        for part in model.head[-1].parameters():
            torch.nn.init.ones_(part)

    monkeypatch.setattr(train, "_begin", collapse)
    console = Console(file=io.StringIO())
    of = config(tmp_path, loss=loss, data={"val_length": 4}, training={"learning_rate": 1e-9, "epochs": 1})
    assert train_phantoms(of, console=console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "nothing is told apart" in line]
    value = float(re.search(r"at the end of epoch 1 is .* would be ([0-9.]+) if all vectors were the same", line)[1])
    # In a batch of 4 triplets some of the 4 others may be of one phantom, or of those that are compared.
    assert value == pytest.approx(identical, abs=1e-3 if loss["name"] == "triplet" else 0.4)


def test_coils_are_compressed_and_values_clipped_where_a_configuration_asks_for_it(tmp_path):
    of = config(tmp_path, data={"num_virtual_coils": 1, "first": {"normalize": {"clip": 0.5}}}, training={"epochs": 1})
    batch = triplets(of.data, seed=0, validation=True).triplets([0, 1])
    assert batch.shape == (3, 2, 2, 32, 32)
    assert batch[0].abs().max() == 0.5
    assert batch[1].abs().max() > 0.5
    assert train_phantoms(of, console=QUIET)
    assert evaluate_phantoms(of.run_folder(), console=QUIET)


def test_half_precision_trains(tmp_path):
    of = config(tmp_path, training={"precision": "bf16", "epochs": 1})
    assert train_phantoms(of, console=QUIET)
    assert all(math.isfinite(record["loss"]) for record in measured(of))


@pytest.mark.parametrize("loss", ["triplet", "ntxent"])
def test_a_run_that_diverges_says_so_and_so_does_its_evaluation(tmp_path, loss):
    of = config(tmp_path, data={"train_length": 4}, loss={"name": loss}, training={"learning_rate": 1e30, "epochs": 2})
    with pytest.raises(DivergedError, match=r"are no numbers: lower training\.learning_rate"):
        train_phantoms(of, console=QUIET)


def test_vectors_that_are_no_numbers_are_not_evaluated(trained, tmp_path):
    checkpoint = load_checkpoint(trained.run_folder() / "best_model.pth")
    checkpoint["model"] = {name: torch.full_like(of, torch.nan) for name, of in checkpoint["model"].items()}
    save_checkpoint(tmp_path / "nan.pth", checkpoint)
    with pytest.raises(InputError, match="the model's vectors are no numbers"):
        evaluate_phantoms(tmp_path / "nan.pth", console=QUIET)


def test_what_is_not_said_of_a_view_stays_as_it_is_by_default():
    def second(*overrides):
        return load_phantom_config(None, [f"data.second.{override}" for override in overrides]).data.second

    default = second()
    assert (default.sampling.settings["acceleration"], default.sampling.settings["center_fraction"]) == (8.0, 0.04)
    assert second("sampling.center_fraction=0.06").sampling.settings == default.sampling.settings | {
        "center_fraction": 0.06
    }
    assert second("max_shift=3") == default.model_copy(update={"max_shift": 3.0})
    # Another sampling has settings of its own.
    assert second("sampling.name=random_lines").sampling.settings["acceleration"] == 4.0


def test_flags_fill_an_empty_section_and_name_one_that_is_none(tmp_path):
    (tmp_path / "c.yaml").write_text("training:\ndata: 5\n")
    with pytest.raises(InputError, match=r"cannot set data.image_size: 'data' is a value, not a section"):
        load_phantom_config(tmp_path / "c.yaml", [], {"training.epochs": 1, "data.image_size": 32})


def test_the_shipped_configurations_are_the_reference_the_description_and_a_short_one():
    reference = load_phantom_config(CONFIGS / "reference.yaml").model_dump()
    assert reference == load_phantom_config(None).model_dump()
    assert load_phantom_config(CONFIGS / "smoke.yaml").training.epochs == 1
    assert load_phantom_config(CONFIGS / "described.yaml") == load_phantom_config(None, base=DESCRIBED)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"train_length": 3}}, "batch_size': 4 is above data.train_length=3"),
        ({"data": {"first": {"sampling": {"name": "spiral"}}}}, "unknown sampling 'spiral'"),
        (
            {"data": {"first": {"sampling": {"name": "equispaced", "speed": 4}}}},
            "unknown key 'data.first.sampling.speed",
        ),
        ({"model": {"depth": 3}}, "unknown key 'model.depth'"),
        ({"loss": {"name": "circle"}}, "unknown metric loss 'circle'"),
        ({"data": {"num_coils": 0}}, "key 'data.num_coils'"),
        ({"data": {"num_virtual_coils": 3}}, "data.num_virtual_coils': 3 is above data.num_coils=2"),
        ({"data": {"first": {"normalize": {"clip": 0}}}}, "key 'data.first.normalize.clip'"),
        ({"run": {"prefix": "../a"}}, "key 'run.prefix'"),
        ({"data": {"first": {"max_degrees": 200}}}, "key 'data.first.max_degrees'"),
        ({"data": {"noise": 1e30}}, "key 'data.noise'"),
        (
            {"data": {"first": {"sampling": {"name": "equispaced", "acceleration": 64}}}},
            "data.first.sampling': acceler",
        ),
        ({"data": {"first": {"sampling": {"name": "equispaced", "acceleration": 0.5}}}}, "acceleration"),
        ({"data": {"second": {"sampling": {"name": "equispaced", "center_fraction": 1.5}}}}, "center_fraction"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(tmp_path, sections, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, **sections)


def test_an_unknown_encoder_is_one_line_with_what_may_be_meant(tmp_path):
    raw = config(tmp_path).model_dump(mode="json") | {"model": {"name": "timm", "encoder": "resnet_18"}}
    with pytest.raises(InputError, match=r"did you mean.*resnet18") as caught:
        train_phantoms(check_phantom_config(raw), console=QUIET)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_cannot_read_such_images_is_named_before_anything_is_written(tmp_path):
    raw = config(tmp_path).model_dump(mode="json") | {"model": {"name": "timm", "encoder": "inception_v3"}}
    of = check_phantom_config(raw)
    with pytest.raises(InputError, match=r"the model cannot read images of 32 × 32 pixels: ") as caught:
        train_phantoms(of, console=QUIET)
    assert "\n" not in str(caught.value)
    assert not of.run_folder().exists()


def test_a_foreign_checkpoint_is_named(trained, tmp_path):
    save_checkpoint(tmp_path / "other.pth", {"config": {"run": {}, "surprise": 1}, "model": {}})
    with pytest.raises(InputError, match="surprise"):
        load_phantom_model(tmp_path / "other.pth")
    with pytest.raises(InputError, match="no checkpoint"):
        load_phantom_model(tmp_path / "nowhere.pth")
    with pytest.raises(InputError, match="holds a run already"):
        train_phantoms(trained, console=QUIET)


def test_deterministic_kernels_train_the_same_model(trained, tmp_path):
    of = config(tmp_path, training={"deterministic": True})
    assert train_phantoms(of, console=QUIET)
    assert measured(of) == measured(trained)
