import pytest
import torch
import yaml

from support.reconstruction_runs import measured, reconstruction, write_volumes
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.plan import load_plan
from voxelwave.jobs.reconstruct.specialists import train_specialists
from voxelwave.jobs.reconstruct.train import train_reconstruction

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    base = reconstruction(write_volumes(folder / "files", 1), folder, blocks=[{"epochs": 1}]).model_dump(mode="json")
    base["training"]["device"] = "auto"
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(base | {"specialists": {"four": {}, "eight": {"data.acceleration": 8}}}))
    return path


def test_on_several_gpus_specialists_are_trained_side_by_side_and_as_by_themselves(plan, tmp_path, monkeypatch):
    """GPUs are said to be there; without any, each process trains on the CPU, as the run that it is compared with."""
    overrides = [f"run.out_dir={tmp_path / 'together'}"]
    with monkeypatch.context() as pretended:
        pretended.setattr(torch.cuda, "device_count", lambda: 2)
        outcome = train_specialists(plan, load_plan(plan, overrides), every=True, overrides=overrides, console=QUIET)
    assert outcome.exit_code == 0
    together = load_plan(plan, overrides).specialists
    alone = load_plan(plan, [f"run.out_dir={tmp_path / 'alone'}"]).specialists
    for name, config in alone.items():
        assert train_reconstruction(config, console=QUIET)
        assert measured(together[name]) == measured(config)


def test_what_is_wrong_with_the_router_is_said_before_a_specialist_is_trained(plan, tmp_path):
    anatomies = [f"specialists.{name}.data.anatomy={of}" for name, of in (("four", "brain"), ("eight", "knee"))]
    asked = load_plan(plan, ["router.training.epoch=3", *anatomies, f"run.out_dir={tmp_path}"])
    with pytest.raises(InputError, match=r"router: unknown key 'training.epoch'"):
        train_specialists(plan, asked, specialist="four", console=QUIET)
    assert not list(tmp_path.iterdir())


def test_a_later_block_of_all_goes_on_from_the_router_that_is_there(tmp_path):
    anatomies = {}
    for number, name in enumerate(("brain", "knee")):
        files = write_volumes(tmp_path / name, 2, scale=1e-3 * (number + 1))
        anatomies[name] = {"data.files": str(files), "data.anatomy": name}
    base = reconstruction(tmp_path, tmp_path / "runs", blocks=[{"epochs": 1}] * 2).model_dump(mode="json")
    base["router"] = {"data": {"image_size": 16, "validation_share": 0}, "training": {"epochs": 1}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(base | {"specialists": anatomies}))
    for block in (1, 2):
        assert train_specialists(path, load_plan(path), every=True, block=block, console=QUIET).exit_code == 0
    for config in load_plan(path).specialists.values():
        assert {record["epoch"] for record in measured(config)} == {1, 2}


def test_the_files_of_all_are_made_before_the_router_is_trained_on_them(tmp_path):
    made = {"volumes": 2, "slices": 1, "size": 32, "coils": 2}
    anatomies = {
        name: {"data.files": str(tmp_path / name), "data.anatomy": name, "data.synthesize": made | {"seed": seed}}
        for seed, name in enumerate(("brain", "knee"))
    }
    base = reconstruction(tmp_path, tmp_path / "runs", blocks=[{"epochs": 1}]).model_dump(mode="json")
    base["router"] = {"data": {"image_size": 16, "validation_share": 0}, "training": {"epochs": 1}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(base | {"specialists": anatomies}))
    assert train_specialists(path, load_plan(path), router=True, console=QUIET).exit_code == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"every": True, "router": True}, "--all and --router"),
        ({"every": True, "specialist": "four"}, "--all and --specialist"),
        ({"router": True, "block": 2}, "--router and --block"),
    ],
)
def test_what_contradicts_is_refused(plan, asked, said):
    with pytest.raises(InputError, match=f"{said} cannot be asked for at once"):
        train_specialists(plan, load_plan(plan), **asked, console=QUIET)


def test_no_specialist_is_called_as_the_router_is(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("specialists:\n  router: {}\n")
    with pytest.raises(InputError, match="a specialist cannot be called 'router'"):
        load_plan(path)
