import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from support.router_volumes import brain, every, phantom, write_volumes
from support.stopping import stop_after
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.synthesis import zero_filled
from voxelwave.engine.checkpoint import load_checkpoint, save_checkpoint
from voxelwave.engine.run_log import read_metrics
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.compare_logs.run import compare_logs
from voxelwave.jobs.reconstruct.plan import load_plan
from voxelwave.jobs.reconstruct.router.config import check_router_config, router_config_of
from voxelwave.jobs.reconstruct.router.data import RouterSteps, RouterVolume, volume_images
from voxelwave.jobs.reconstruct.router.training import (
    anatomy_of,
    epochs_of,
    load_router,
    train_router,
    train_router_from,
)

QUIET = Console(quiet=True)
EPOCHS = 15  # of three steps: there are few volumes
RECIPE = Path(__file__).parents[4] / "configs" / "reconstruct" / "recipe.yaml"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Volumes to train on: full k-space, and of phantoms also some that have a mask of their own."""
    folder = tmp_path_factory.mktemp("volumes")
    write_volumes(folder / "brain", brain, range(8))
    write_volumes(folder / "phantom", phantom, range(6))
    write_volumes(folder / "phantom", phantom, range(6, 8), every(8))
    return folder


def config(folder, volumes, name="router", **sections):
    raw = {
        "run": {"name": name, "out_dir": str(folder), "tensorboard": False},
        "data": {
            "anatomies": {"phantom": str(volumes / "phantom"), "brain": str(volumes / "brain")},
            "image_size": 64,
            "validation_share": 0.2,
        },
        "training": {"epochs": EPOCHS, "batch_size": 4, "learning_rate": 3e-3, "device": "cpu"},
    }
    for section, values in sections.items():
        raw[section] |= values
    return check_router_config(raw)


@pytest.fixture(scope="module")
def trained(volumes, tmp_path_factory):
    of = config(tmp_path_factory.mktemp("router"), volumes)
    assert train_router_from(of, console=QUIET)
    return of


def test_a_run_leaves_a_run_folder_like_all_others(trained):
    folder = trained.run_folder()
    names = (
        "config.yaml",
        "history.csv",
        "last.pth",
        f"checkpoint_epoch_{EPOCHS}.pth",
        "best_model.pth",
        "results.json",
    )
    assert all((folder / name).stat().st_size > 0 for name in names)
    records = read_metrics(folder / "metrics.jsonl")
    # 2 of 8 volumes of each anatomy are held out, and 12 fill three batches of 4.
    assert [record["epoch"] for record in records if "validation_accuracy" in record] == [*range(1, EPOCHS + 1)]
    assert len(records) == EPOCHS * 3
    best = min((record for record in records if "validation_loss" in record), key=lambda one: one["validation_loss"])
    assert json.loads((folder / "results.json").read_text())["epoch"] == best["epoch"]
    assert load_checkpoint(folder / "best_model.pth")["epoch"] == best["epoch"]


@pytest.mark.parametrize("sampled", [None, every(4), every(8)], ids=["full", "acc4", "acc8"])
def test_volumes_that_were_held_out_are_told_whatever_their_files_are_called(trained, tmp_path, sampled):
    router = load_router(trained.run_folder())
    assert router.anatomies == ("brain", "phantom")
    brains = write_volumes(tmp_path / "b", brain, range(100, 104), sampled)
    phantoms = write_volumes(tmp_path / "p", phantom, range(100, 104), sampled)
    told = {path: anatomy_of(router, KspaceFile(path)) for path in (*brains, *phantoms)}
    assert [told[path][0] for path in (*brains, *phantoms)] == ["brain"] * 4 + ["phantom"] * 4
    assert all(0.5 <= probability <= 1 for _, probability in told.values())
    # Each gets the name of one of the other anatomy, and the same answer to the last bit.
    for place, other in zip((*brains, *phantoms), (*phantoms, *brains), strict=True):
        renamed = tmp_path / "renamed" / f"phantom_{other.name}"
        renamed.parent.mkdir(exist_ok=True)
        shutil.copyfile(place, renamed)
        assert anatomy_of(router, KspaceFile(renamed)) == told[place]


def test_names_are_no_part_of_what_is_learned(trained, volumes, tmp_path):
    """Files that are called otherwise, in the same order, train the same router."""
    renamed = {}
    for anatomy, other in (("brain", "knee_acc4"), ("phantom", "brain_acc8")):
        places = sorted((volumes / anatomy).iterdir())
        renamed[anatomy] = [tmp_path / f"{other}_{number}.h5" for number, _ in enumerate(places)]
        for place, name in zip(places, renamed[anatomy], strict=True):
            shutil.copyfile(place, name)
    of = config(tmp_path / "run", volumes)
    assert train_router(of, renamed, console=QUIET)
    assert compare_logs(of.run_folder(), trained.run_folder(), console=QUIET)


def test_a_resumed_run_has_the_numbers_of_one_that_was_not_interrupted(trained, volumes, tmp_path):
    of = config(tmp_path, volumes)
    assert not train_router_from(of, console=QUIET, should_stop=stop_after(7))
    with pytest.raises(InputError, match="go on with --resume"):
        train_router_from(of, console=QUIET)
    assert train_router_from(of, resume=True, console=QUIET)
    assert compare_logs(of.run_folder(), trained.run_folder(), console=QUIET)
    first, second = (load_checkpoint(one.run_folder() / "best_model.pth")["model"] for one in (of, trained))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_a_run_does_not_go_on_with_other_volumes(volumes, tmp_path):
    places = {name: sorted((volumes / name).iterdir()) for name in ("brain", "phantom")}
    of = config(tmp_path, volumes)
    assert not train_router(of, places, console=QUIET, should_stop=stop_after(2))
    with pytest.raises(InputError, match=r"cannot resume .*its volumes were"):
        train_router(of, places | {"brain": places["brain"][1:]}, resume=True, console=QUIET)


def test_deterministic_kernels_serve_and_nothing_has_to_be_held_out(volumes, tmp_path):
    given = {"data": {"validation_share": 0.0, "flip": True}, "training": {"deterministic": True, "epochs": 2}}
    first, second = config(tmp_path / "a", volumes, **given), config(tmp_path / "b", volumes, **given)
    assert train_router_from(first, console=QUIET)
    assert train_router_from(second, console=QUIET)
    assert compare_logs(first.run_folder(), second.run_folder(), console=QUIET)
    assert not (first.run_folder() / "results.json").exists()
    assert load_router(first.run_folder()).anatomies == ("brain", "phantom")


def test_images_are_zero_filled_in_a_square_over_the_largest_value(volumes):
    file = KspaceFile(sorted((volumes / "brain").iterdir())[0])
    kspace = torch.stack([file.slice(number) for number in range(len(file))])[:, 0]
    expected = F.interpolate(zero_filled(kspace, torch.ones(64).bool(), (64, 64))[None], size=(16, 16), mode="area")[0]
    images = volume_images(file, image_size=16, max_slices=9)
    torch.testing.assert_close(images, expected / expected.max())
    assert float(images.max()) == 1
    middle = volume_images(file, image_size=16, max_slices=1)
    torch.testing.assert_close(middle, expected[1:] / expected[1:].max())


def test_the_mask_of_a_file_goes_before_one_that_is_drawn(volumes):
    *_, masked = sorted((volumes / "phantom").iterdir())
    full = sorted((volumes / "phantom").iterdir())[0]

    def nothing_but_the_centre(shape, generator):
        return (torch.arange(shape[1]) == shape[1] // 2).repeat(shape[0], 1)

    seen = [
        [volume_images(KspaceFile(path), *given, image_size=64, max_slices=1) for given in ((), drawn)]
        for drawn in [(nothing_but_the_centre, torch.Generator())]
        for path in (masked, full)
    ]
    assert torch.equal(*seen[0])
    assert not torch.equal(*seen[1])


def test_every_epoch_has_each_volume_once_and_flips_turn_a_whole_volume():
    volumes = [RouterVolume(torch.rand(2, 16, 16), number % 2, str(number)) for number in range(7)]
    steps = RouterSteps(volumes, batch_size=3, flip=True, seed=0)
    batches = list(steps.batches(0, 6))
    assert [len(batch.files) for batch in batches] == [3, 3, 1, 3, 3, 1]
    names = [[name for batch in batches[begin : begin + 3] for name in batch.files] for begin in (0, 3)]
    assert sorted(names[0]) == sorted(names[1]) == [str(number) for number in range(7)]
    assert names[0] != names[1]
    turned = set()
    for batch in batches:
        for images, label, name in zip(batch.images.split(batch.counts), batch.labels, batch.files, strict=True):
            original = volumes[int(name)]
            assert label == original.label
            (sides,) = [sides for sides in ((), (1,), (2,), (1, 2)) if torch.equal(images, original.images.flip(sides))]
            turned.add(sides)
    assert len(turned) > 1
    assert all(torch.equal(one.images, other.images) for one, other in zip(batches, steps.batches(0, 6), strict=True))


def test_a_file_can_be_of_one_anatomy_only(volumes, tmp_path):
    brains = sorted((volumes / "brain").iterdir())
    with pytest.raises(InputError, match="is given as brain and as knee"):
        train_router(config(tmp_path, volumes), {"brain": brains, "knee": brains[:1]}, console=QUIET)


def test_an_anatomy_of_one_file_is_trained_on_and_that_is_said(volumes, tmp_path, capsys):
    places = {name: sorted((volumes / name).iterdir()) for name in ("brain", "phantom")}
    places["brain"] = places["brain"][:1]
    assert not train_router(config(tmp_path, volumes), places, should_stop=stop_after(1))
    said = " ".join(capsys.readouterr().out.split())
    assert "of brain there is one file" in said
    assert "7 volumes, 2 of validation" in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": {"anatomies": {"brain": "a"}}}, "two anatomies or more"),
        ({"data": {"anatomies": {"../brain": "a", "knee": "b"}}}, "data.anatomies"),
        ({"data": {"samplings": [{"name": "equispaced", "acceleration": 0.5}]}}, "acceleration must be"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_line(volumes, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        config(tmp_path, volumes, **changed)


def test_the_router_of_the_recipe_is_trained_on_the_files_of_its_specialists():
    plan = load_plan(RECIPE, ["router.training.epochs=2"])
    of = router_config_of(plan, "recipe")
    assert of.data.anatomies == {
        name: [f"Data/train/{name}/kspace/{name}_acc{rate}_*.h5" for rate in (4, 8)] for name in ("brain", "knee")
    }
    assert (of.training.epochs, of.data.image_size) == (2, 128)
    assert of.run_folder().parent == plan.specialists["knee_acc8"].run_folder().parent
    assert [one.settings["acceleration"] for one in of.data.samplings] == [4, 8]


def test_specialists_of_one_anatomy_need_no_router():
    plan = load_plan(RECIPE)
    brains = {name: config for name, config in plan.specialists.items() if name.startswith("brain")}
    with pytest.raises(InputError, match="several anatomies"):
        router_config_of(plan._replace(specialists=brains), "recipe")


def test_few_volumes_are_seen_more_often():
    assert [epochs_of(asked, steps) for asked, steps in ((None, 7), (None, 1000), (3, 7))] == [86, 5, 3]


def test_another_checkpoint_is_no_router(trained, tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        load_router(tmp_path)
    state = load_checkpoint(trained.run_folder() / "best_model.pth")
    save_checkpoint(tmp_path / "other.pth", state | {"anatomies": ["brain", "knee", "heart"]})
    with pytest.raises(InputError, match="is no checkpoint of a router"):
        load_router(tmp_path / "other.pth")
