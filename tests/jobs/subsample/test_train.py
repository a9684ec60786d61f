import json
import os

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from support.stopping import stop_after
from support.subsample_runs import subsample
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.subsample import model
from voxelwave.jobs.subsample.model import Built, load_subsampled
from voxelwave.jobs.subsample.own_model import read_own_model
from voxelwave.jobs.subsample.parts import load_images
from voxelwave.jobs.subsample.scoring import by_network, score
from voxelwave.jobs.subsample.train import _as_it_began, train_subsampled
from voxelwave.objectives.subsampled_reconstruction import SubsampledReconstruction

QUIET = Console(quiet=True)
LEARNED = {"learn": True, "drop_rate": 0.5, "epochs": 2}
OWN = """from torch import nn
from voxelwave.unrolled.subsampling import channels_of


class Model(nn.Module):
    def __init__(self, subsampling):
        super().__init__()
        self.subsampling, self.correct = subsampling, nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, kspace):
        {body}
"""
BODY = "image = channels_of(self.subsampling(kspace)); return image + self.correct(image)"


def own(tmp_path, body=BODY, text=OWN):
    path = tmp_path / "mine.py"
    path.write_text(text.replace("{body}", body))
    return read_own_model(path)


def results(config):
    return json.loads((config.run_folder() / "results.json").read_text())


def weights(config):
    return load_checkpoint(config.run_folder() / "last.pth")["model"]


@pytest.mark.parametrize("mask", [LEARNED, {"fixed": "power", "drop_rate": 0.3}])
def test_a_run_leaves_scores_of_every_part_pictures_and_a_mask_of_the_exact_share(tmp_path, mask):
    config = subsample(tmp_path, mask=mask)
    assert train_subsampled(config, console=QUIET)
    folder, found = config.run_folder(), results(config)
    kept = round((1 - mask["drop_rate"]) * 32 * 32)
    assert found["kept"] == kept
    assert int((imread(folder / "mask.png")[..., 0] > 0.5).sum()) == kept
    assert set(found["scores"]) == {"training", "validation", "test"}
    assert found["data"]["volumes"] == {"training": 4, "validation": 1, "test": 1}
    assert (folder / "figures" / "example.png").stat().st_size > 1000
    steps = sorted(path.stem for path in (folder / "masks").glob("*.png"))
    assert steps == (["epoch_0000", "epoch_0001", "epoch_0002"] if mask.get("learn") else [])
    if steps:
        assert (imread(folder / "masks" / "epoch_0002.png") == imread(folder / "mask.png")).all()
    # What is loaded scores what was recorded.
    layer, model, _ = load_subsampled(folder)
    test = load_images(config.data).open_test()
    again = score(by_network(SubsampledReconstruction(model)), test).summary()
    assert again["psnr_db"] == pytest.approx(found["scores"]["test"]["network"]["psnr_db"], abs=1e-4)
    assert int(layer.mask().sum()) == kept


@pytest.mark.parametrize("rule", ["exploring", "relaxed"])
def test_a_run_that_was_stopped_goes_on_exactly(tmp_path, rule):
    mask = LEARNED | {"rule": {"name": rule}}
    whole, parted = (subsample(tmp_path / name, mask=mask) for name in ("whole", "parted"))
    assert train_subsampled(whole, console=QUIET)
    for stop in (2, 5):  # while the mask moves, and after it
        assert not train_subsampled(parted, resume=stop > 2, console=QUIET, should_stop=stop_after(stop))
    assert train_subsampled(parted, resume=True, console=QUIET)
    ours, theirs = weights(whole), weights(parted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert results(whole) == results(parted)


def test_behind_the_final_mask_a_network_is_trained_exactly_as_behind_that_mask_from_the_start(tmp_path, monkeypatch):
    learned = subsample(tmp_path / "learned", mask=LEARNED)
    assert train_subsampled(learned, console=QUIET)
    mask = load_subsampled(learned.run_folder())[0].mask()
    monkeypatch.setattr(model, "fixed_mask", lambda *_, **settings: mask)
    fixed = subsample(tmp_path / "fixed", mask={"drop_rate": 0.5})
    assert train_subsampled(fixed, console=QUIET)
    ours, theirs = weights(learned), weights(fixed)
    names = [name for name in ours if "subsampling" not in name]
    assert len(names) == 4
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert results(learned)["scores"] == results(fixed)["scores"]


def test_the_best_weights_are_those_behind_the_final_mask(tmp_path):
    config = subsample(tmp_path, mask=LEARNED)
    train_subsampled(config, console=QUIET)
    best = load_checkpoint(config.run_folder() / "best_model.pth")
    assert best["epoch"] > 2
    assert bool(best["model"]["model.subsampling.settled"])
    layer, _, _ = load_subsampled(config.run_folder())
    last = weights(config)["model.subsampling.scores"]
    assert torch.equal(layer.scores, last)


def test_more_epochs_after_the_test_was_opened_are_refused(tmp_path):
    train_subsampled(subsample(tmp_path), console=QUIET)
    with pytest.raises(InputError, match="epochs"):
        train_subsampled(subsample(tmp_path, training={"epochs": 6}), resume=True, console=QUIET)


def test_a_model_of_ones_own_is_trained_kept_and_asked_for(tmp_path):
    config, mine = subsample(tmp_path, mask=LEARNED), own(tmp_path)
    assert train_subsampled(config, own=mine, console=QUIET)
    _, model, loaded = load_subsampled(config.run_folder(), mine)
    assert type(model) is mine.kind
    assert loaded.model.settings == {"checksum": mine.checksum}
    with pytest.raises(InputError, match="is a file of yours: name it with --model"):
        load_subsampled(config.run_folder())
    with pytest.raises(InputError, match="checksum"):
        train_subsampled(config, own=own(tmp_path, BODY + "  # changed"), resume=True, console=QUIET)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return self.correct(channels_of(kspace))", "does not call the subsampling layer"),
        (
            "return self.correct(channels_of(self.subsampling(kspace) + kspace))",
            "sees frequencies that the layer removes",
        ),
        ("return self.subsampling(kspace)", r"returns \(2, 32, 32\), and is to return real and imaginary parts"),
        ("return self.correct(self.subsampling(kspace))", "fails on k-space of 32 × 32"),
        ("raise KeyError('x')", "fails on k-space of 32 × 32: KeyError"),
        ("return self.correct(channels_of(self.subsampling(kspace))) / 0", "returns values that are not finite"),
        (
            "image = channels_of(self.subsampling(kspace)); return image + image.new_empty(image.shape).normal_()",
            "says something else each time in evaluation mode",
        ),
    ],
)
def test_what_is_wrong_with_a_model_is_one_line(tmp_path, body, message):
    with pytest.raises(InputError, match=f"model Model: {message}"):
        train_subsampled(subsample(tmp_path), own=own(tmp_path, body), console=QUIET)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_that_scores_the_test_of_another_says_so(tmp_path, capsys, seed):
    data = {"seed": 0}
    train_subsampled(subsample(tmp_path, training={"epochs": 1}, data=data), console=QUIET)
    again = subsample(tmp_path, run={"name": "other"}, training={"epochs": 1}, data=data | {"seed": seed})
    train_subsampled(again, console=Console())
    said = "images of the test were scored by other runs, too (subsample)" in " ".join(capsys.readouterr().out.split())
    assert said == (seed == 0)


def test_a_learned_mask_needs_its_gradient(tmp_path):
    detached = own(tmp_path, "return self.correct(channels_of(self.subsampling(kspace)).detach())")
    with pytest.raises(InputError, match="hands no gradient on to the mask"):
        train_subsampled(subsample(tmp_path, mask=LEARNED), own=detached, console=QUIET)
    assert train_subsampled(subsample(tmp_path, training={"epochs": 1}), own=detached, console=QUIET)


def test_a_source_that_has_changed_is_refused(tmp_path):
    images = np.random.default_rng(0).random((9, 32, 32), dtype=np.float32)
    np.save(tmp_path / "stack.npy", images)
    config = subsample(tmp_path, data={"source": str(tmp_path / "stack.npy"), "volumes": 9, "slices": 1})
    assert not train_subsampled(config, console=QUIET, should_stop=stop_after(1))
    np.save(tmp_path / "stack.npy", images[::-1])
    with pytest.raises(InputError, match="images"):
        train_subsampled(config, resume=True, console=QUIET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_the_kind", r"mine.py, line 1: ModuleNotFoundError: No module"),
        ("x = 1\nclass Model: pass", "defines no `class Model"),
        ("def Model(:", "mine.py, line 1: SyntaxError"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 0\nModel = A",
            "defines no `class Model",
        ),
        (
            "import torch\nclass Model(torch.nn.Module):\n    def __init__(self):\n        pass",
            "Model.subsampling. fails",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_with_its_place(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        train_subsampled(subsample(tmp_path), own=own(tmp_path, text=text), console=QUIET)


def test_a_file_may_say_its_encoding_and_may_not_end_the_process(tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes("# coding: latin-1\n# für\n".encode("latin-1") + OWN.replace("{body}", BODY).encode())
    assert "# für" in read_own_model(path).source
    with pytest.raises(InputError, match=r"mine.py, line 2: SystemExit: 3"):
        own(tmp_path, text="import sys\nsys.exit(3)")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "mine.py")
    with pytest.raises(InputError, match=r"cannot read the model .*mine.py: not a file but a folder, a pipe"):
        read_own_model(tmp_path / "mine.py")


def test_a_network_that_was_moved_begins_anew_with_its_buffers():
    layer, objective = torch.nn.Linear(2, 2), torch.nn.Sequential()
    layer.register_buffer("mask", torch.ones(2))
    objective.add_module("layer", layer)
    objective.add_module("norm", torch.nn.BatchNorm1d(2))
    begin = _as_it_began(Built(layer, objective))
    objective.double()  # as moving it to a device does, that replaces buffers
    with torch.no_grad():
        for value in (*objective.parameters(), *objective.buffers()):
            value.fill_(7)
    begin()
    assert objective.norm.running_mean.tolist() == [0, 0]
    assert objective.norm.weight.tolist() == [1, 1]
    assert layer.mask.tolist() == [7, 7]


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the model .*mine.py: No such file"):
        read_own_model(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": {"drop_rate": 1.0}}, "key 'mask.drop_rate'"),
        ({"mask": {"drop_rate": -0.1}}, "key 'mask.drop_rate'"),
        ({"mask": {"fixed": "half_plane"}}, "half_plane is reconstructed without a network"),
        ({"mask": {"rule": {"name": "described", "seed": 1}}}, "key 'mask.rule.seed': is run.seed: set that"),
        ({"mask": {"mask_lr": 0.1}}, "key 'mask.mask_lr': this mask is fixed: set mask.learn=true"),
        ({"mask": {"rule": {"name": "nonsense"}}}, "unknown rule of a learned mask 'nonsense'"),
        ({"data": {"slices": 10**12}}, "key 'data.slices'"),
        ({"data": {"volumes": 10**15}}, "key 'data.volumes'"),
        ({"data": {"validation": 0.5, "test": 0.5}}, "shares whose sum is below 1, got 0.5 \\+ 0.5"),
        ({"model": {"name": "plain", "width": 3}}, "model"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        subsample(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": {"drop_rate": 0.9999}}, "keeps none of 1024"),
        ({"mask": {"fixed": "poisson_disc", "lines": True}}, "not of lines"),
        ({"training": {"batch_size": 9}}, "there are 8 images to train on, fewer than training.batch_size=9"),
    ],
)
def test_what_does_not_fit_the_images_is_refused_before_anything_is_written(tmp_path, settings, message):
    config = subsample(tmp_path, **settings)
    with pytest.raises(InputError, match=message):
        train_subsampled(config, console=QUIET)
    assert not config.run_folder().exists()


def test_drop_rate_0_reproduces_images_of_odd_sides(tmp_path):
    config = subsample(tmp_path, mask={"drop_rate": 0.0}, data={"size": 33}, training={"epochs": 1})
    train_subsampled(config, console=QUIET)
    assert results(config)["kept"] == 33 * 33
    assert results(config)["scores"]["test"]["zero_filled"]["psnr_db"] is None  # infinite
