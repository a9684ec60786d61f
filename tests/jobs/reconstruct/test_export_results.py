import csv
import shutil

import numpy as np
import pytest

from support.command import voxelwave
from support.reconstruction_runs import measured, reconstruction, write_volumes
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.export_results import export_results
from voxelwave.jobs.reconstruct.model import load_reconstruction
from voxelwave.jobs.reconstruct.train import train_reconstruction

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    blocks = [{"epochs": 2}, {"epochs": 1}]
    of = reconstruction(write_volumes(folder / "files"), folder, "brain_acc4", blocks=blocks)
    assert train_reconstruction(of, console=QUIET)
    return of


def test_checkpoints_lie_by_block_and_epoch_and_losses_are_the_means_of_epochs(trained, tmp_path):
    assert voxelwave("reconstruct", "export-results", trained.run_folder(), tmp_path).code == 0
    folder = tmp_path / "test_brain_acc4"
    found = sorted(path.relative_to(folder / "checkpoints").as_posix() for path in folder.glob("checkpoints/*/*/*"))
    assert found == [f"{place}/checkpoint.pth" for place in ("step1/epoch-1", "step1/epoch-2", "step2/epoch-3")]
    losses = [[record["loss"] for record in measured(trained) if record["epoch"] == epoch] for epoch in (1, 2, 3)]
    for step, wanted in ((1, losses[:2]), (2, losses[2:])):
        stored = np.load(folder / "loss_log" / f"step{step}" / "loss_log.npy", allow_pickle=False)
        np.testing.assert_allclose(stored, [np.mean(of) for of in wanted], rtol=1e-12)
    with (folder / "steps.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in measured(trained)]


def test_an_exported_checkpoint_can_be_loaded(trained, tmp_path):
    (folder,) = export_results(trained.run_folder().parent, tmp_path, console=QUIET)
    place = folder / "checkpoints" / "step1" / "epoch-1" / "checkpoint.pth"
    assert load_reconstruction(place).config.run.name == "brain_acc4"


def test_a_folder_without_runs_is_said(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        export_results(tmp_path, tmp_path / "out", console=QUIET)


def test_a_run_that_ended_in_its_first_step_is_exported_with_the_others(trained, tmp_path):
    runs = shutil.copytree(trained.run_folder(), tmp_path / "runs" / "a")
    begun = shutil.copytree(runs, tmp_path / "runs" / "b")
    for path in begun.glob("*.pth"):
        path.unlink()
    (begun / "metrics.jsonl").write_text("")
    folders = export_results(tmp_path / "runs", tmp_path / "out", console=QUIET)
    assert [folder.name for folder in folders] == ["test_a", "test_b"]
    assert (tmp_path / "out" / "test_b" / "steps.csv").exists()
