import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml

from support.command import voxelwave
from support.kspace_files import centre_and_every_fourth, kspace
from support.reconstruction_runs import TINY, measured, reconstruction, same_weights, write_volumes
from support.stopping import stop_after
from voxelwave.data.kspace.writing import plain_header, write_fastmri, write_mrd
from voxelwave.engine.checkpoint import load_checkpoint
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.data import HeldOut, ReconstructionSteps, find_files
from voxelwave.jobs.reconstruct.model import load_reconstruction
from voxelwave.jobs.reconstruct.train import train_reconstruction

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("kspace"))


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    of = reconstruction(files, tmp_path_factory.mktemp("runs"), data={"validation": 0.3})
    assert train_reconstruction(of, console=QUIET)
    return of


def test_a_run_leaves_weights_records_and_pictures(trained):
    folder = trained.run_folder()
    kept = ("best_model.pth", "last.pth", "config.yaml", "history.csv", "results.json")
    for name in (
        *kept,
        "checkpoint_epoch_1.pth",
        "checkpoint_epoch_2.pth",
        "figures/losses.png",
        "figures/example.png",
    ):
        assert (folder / name).is_file(), name
    records = measured(trained)
    assert len(records) == 6
    assert [record["epoch"] for record in records] == [1, 1, 1, 2, 2, 2]
    assert all("validation_loss" in record for record in (records[2], records[5]))


def test_the_weights_of_a_run_reconstruct_as_in_training(trained, files):
    network, config = load_reconstruction(trained.run_folder())
    assert config.model.settings["num_cascades"] == 2
    state = load_checkpoint(trained.run_folder() / "best_model.pth")["model"]
    assert same_weights({f"network.{name}": of for name, of in network.state_dict().items()}, state)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize(("workers", "band"), [(1, None), (4, 16)])
def test_not_a_bit_depends_on_the_number_of_workers(files, tmp_path, workers, band):
    one = reconstruction(files, tmp_path, "one", data={"band_rows": band})
    many = reconstruction(files, tmp_path, "many", data={"num_workers": workers, "band_rows": band})
    for of in (one, many):
        assert train_reconstruction(of, console=QUIET)
    assert measured(one) == measured(many)


# In the first block, at its end, and in the second one.
@pytest.mark.parametrize(("steps", "offload", "band"), [(1, False, 16), (4, True, None), (5, True, None)])
def test_a_run_that_was_stopped_goes_on_exactly(files, tmp_path, steps, offload, band):
    settings = {"training": {"offload_optimizer": offload}, "data": {"band_rows": band}}
    whole, parts = (reconstruction(files, tmp_path, name, **settings) for name in ("whole", "parts"))
    assert train_reconstruction(whole, console=QUIET)
    assert not train_reconstruction(
        parts, console=QUIET, should_stop=stop_after(2 * steps)
    )  # asked after each micro-batch
    assert train_reconstruction(parts, resume=True, console=QUIET)
    assert measured(parts) == measured(whole)
    states = [load_checkpoint(of.run_folder() / "last.pth") for of in (whole, parts)]
    assert same_weights(states[0]["model"], states[1]["model"])


def test_blocks_one_by_one_are_the_blocks_in_a_row(files, tmp_path):
    whole, blocks = reconstruction(files, tmp_path, "whole"), reconstruction(files, tmp_path, "blocks")
    assert train_reconstruction(whole, console=QUIET)
    for block in (1, 2):
        assert train_reconstruction(blocks, block=block, console=QUIET)
        assert measured(blocks) == measured(whole)[: 4 * block]
    with pytest.raises(InputError, match="blocks 1 to 2, got 3"):
        train_reconstruction(blocks, block=3, console=QUIET)


def test_a_block_needs_the_one_before(files, tmp_path):
    of = reconstruction(files, tmp_path)
    with pytest.raises(InputError, match="goes on from epoch 1, and 0 were trained"):
        train_reconstruction(of, block=2, console=QUIET)
    assert not train_reconstruction(of, console=QUIET, should_stop=stop_after(2))
    with pytest.raises(InputError, match="goes on from epoch 1, and 0 were trained"):
        train_reconstruction(of, block=2, console=QUIET)


def test_a_block_begins_with_a_new_optimiser(files, tmp_path):
    of = reconstruction(files, tmp_path)
    assert not train_reconstruction(of, console=QUIET, should_stop=stop_after(2 * 5))  # asked after each micro-batch
    state = load_checkpoint(of.run_folder() / "last.pth")["optimizer"]["state"]
    assert {int(moments["step"]) for moments in state.values()} == {1}  # of the second block


def test_masks_and_augmentation_are_those_of_the_block(files, tmp_path):
    sampling = [{"name": "random_spaced", "acceleration": 3, "center_fraction": 0.2}]
    blocks = [{"epochs": 1, "samplings": []}, {"epochs": 1, "samplings": sampling}]
    of = reconstruction(files, tmp_path, blocks=blocks)
    steps = ReconstructionSteps(of, find_files(of.data, seed=0, console=QUIET).training, neighbours=1)
    own = torch.arange(24) % 4 == 0
    own[9:15] = True
    first, second = [[steps[micro] for micro in range(start, start + 8)] for start in (0, 8)]
    assert all(torch.equal(batch.sampled[0, 0], own) for batch in first)
    assert not any(torch.equal(batch.sampled[0, 0], own) for batch in second)
    assert {tuple(batch.kspace.shape) for batch in first} == {(1, 3, 3, 30, 24)}


def test_the_middle_of_the_readout_is_what_is_left_of_the_image(files, tmp_path):
    """Cropped k-space is that of the cropped image, whatever lines are sampled: in NumPy."""
    whole, cropped = reconstruction(files, tmp_path, data={"readout_rows": None}), reconstruction(files, tmp_path)
    batches = []
    for of in (whole, cropped):
        steps = ReconstructionSteps(of, find_files(of.data, seed=0, console=QUIET).training, neighbours=1)
        batches.append(steps[3])
    image, smaller = (
        np.fft.fftshift(
            np.fft.ifft2(np.fft.ifftshift(batch.kspace.numpy(), axes=(-2, -1)), norm="ortho"), axes=(-2, -1)
        )
        for batch in batches
    )
    np.testing.assert_allclose(smaller, image[..., 1:31, :], atol=1e-6)
    assert torch.equal(batches[0].sampled[0, 0], batches[1].sampled[0, 0])


def test_a_band_is_rows_of_the_image_and_of_the_target(files, tmp_path):
    """In NumPy; which rows is another draw in each micro-batch, and what is validated is whole."""
    slices, bands = (reconstruction(files, tmp_path, data={"band_rows": rows}) for rows in (None, 16))
    found = find_files(slices.data, seed=0, console=QUIET).training
    whole, steps = (ReconstructionSteps(of, found, neighbours=1) for of in (slices, bands))

    def image(batch):
        shifted = np.fft.ifftshift(batch.kspace.numpy(), axes=(-2, -1))
        return np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(-2, -1))

    starts = set()
    for micro in range(6):
        band, batch = steps[micro], whole[micro]
        (first,) = (row for row in range(13) if torch.equal(batch.target[:, row : row + 16], band.target))
        starts.add(first)
        # The target is the middle 28 of 30 rows.
        np.testing.assert_allclose(image(band), image(batch)[..., first + 1 : first + 17, :], atol=1e-6)
        assert torch.equal(band.sampled, batch.sampled[:, :16])
        assert band.data_range == batch.data_range
        assert torch.equal(steps.whole(micro).kspace, batch.kspace)
    assert len(starts) > 1
    assert HeldOut(bands, found, neighbours=1)[0].kspace.shape[-2] == 30


def test_a_band_of_single_places_is_refused(files, tmp_path):
    places = [{"epochs": 1, "samplings": [{"name": "poisson_disc"}]}]
    of = reconstruction(files, tmp_path, data={"band_rows": 16, "readout_rows": None}, blocks=places)
    with pytest.raises(InputError, match=r"volume.\.h5, slice .: .*set data.band_rows to null"):
        train_reconstruction(of, console=QUIET)


def test_virtual_coils_are_what_is_trained_on(files, tmp_path):
    for compression in ("svd", "geometric"):
        coils = {"coils": {"num_virtual": 2, "compression": compression}}
        of = reconstruction(files, tmp_path, data=coils)
        steps = ReconstructionSteps(of, find_files(of.data, seed=0, console=QUIET).training, neighbours=1)
        assert steps[0].kspace.shape == (1, 3, 2, 30, 24)


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ({"name": "unet", "channels": 4, "depth": 2}, "supervised"),
        ({**{key: of for key, of in TINY.items() if key != "name"}, "name": "variational_network"}, "supervised"),
    ],
)
def test_every_network_can_be_trained(files, tmp_path, model, objective):
    of = reconstruction(files, tmp_path, training={"objective": {"name": objective}})
    of = type(of).model_validate(of.model_dump() | {"model": model})
    assert train_reconstruction(of, block=1, console=QUIET)
    assert load_reconstruction(of.run_folder()).config.model.name == model["name"]


def test_images_in_another_unit_than_that_of_the_anatomys_mask_count_whole(tmp_path, caplog):
    faint, losses = write_volumes(tmp_path / "faint", scale=1e-5), []
    for anatomy in (None, "brain"):
        of = reconstruction(faint, tmp_path, str(anatomy), data={"anatomy": anatomy})
        assert train_reconstruction(of, block=1, console=QUIET)
        losses.append(measured(of)[0]["loss"])
    assert losses[0] == losses[1] > 0
    assert "it seems to be in another unit" in caplog.text


def test_files_that_cannot_be_used_end_a_run_or_are_counted(files, tmp_path, capsys):
    folder = shutil.copytree(files, tmp_path / "files")
    broken = folder / "kspace" / "volume1.h5"
    broken.write_bytes(broken.read_bytes()[:3000])
    of = reconstruction(folder, tmp_path)
    with pytest.raises(InputError, match=r"volume1.h5: .*data.skip_unusable=true leaves such files out"):
        train_reconstruction(of, console=QUIET)
    of = reconstruction(folder, tmp_path, data={"skip_unusable": True})
    assert train_reconstruction(of, block=1, console=Console())
    assert "left out: 1 of 3" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slice_that_cannot_be_used_is_passed_over_where_that_is_asked(files, tmp_path, caplog, workers):
    """Which is seen only when it is read, of files of training and of validation."""
    folder = shutil.copytree(files, tmp_path / "files")
    for name in ("volume0", "volume1"):
        with h5py.File(folder / "kspace" / f"{name}.h5", "a") as file:
            file["kspace"][2, 0, 0, 0] = np.inf
    data = {"files": str(folder / "kspace" / "volume[02].h5"), "num_workers": workers}
    of = reconstruction(folder, tmp_path, "strict", data=data)
    with pytest.raises(InputError, match=r"volume0.h5: slices? .*NaN or infinite"):
        train_reconstruction(of, console=QUIET)
    data |= {"skip_unusable": True, "validation": str(folder / "kspace" / "volume1.h5")}
    of = reconstruction(folder, tmp_path, data=data)
    assert train_reconstruction(of, console=QUIET)
    assert np.isfinite([record["loss"] for record in measured(of)]).all()
    assert "passed over in validation, 2 so far" in caplog.text  # that slice, and the one beside it
    assert "passed over, 2 so far" in caplog.text
    assert "passed over, 3 so far" not in caplog.text


def test_a_run_that_met_a_bad_slice_goes_on_without_it(files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    with h5py.File(folder / "kspace" / "volume0.h5", "a") as file:
        file["kspace"][2, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match=r"--resume --set data.skip_unusable=true leaves such slices out"):
        train_reconstruction(reconstruction(folder, tmp_path), console=QUIET)
    of = reconstruction(folder, tmp_path, data={"skip_unusable": True})
    assert train_reconstruction(of, resume=True, console=QUIET)
    assert np.isfinite([record["loss"] for record in measured(of)]).all()


def test_a_file_that_does_not_say_its_range_is_said_before_anything_is_trained(files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    with h5py.File(folder / "image" / "volume2.h5", "a") as file:
        del file.attrs["max"]
    of = reconstruction(folder, tmp_path, data={"data_range": "attribute"})
    with pytest.raises(InputError, match=r"volume2.h5: has no attribute 'max'.*data.data_range=volume"):
        train_reconstruction(of, console=QUIET)
    assert not (of.run_folder() / "metrics.jsonl").exists()


def test_a_slice_whose_origin_is_not_sampled_is_said(files, tmp_path):
    blocks = [{"epochs": 1, "samplings": [{"name": "equispaced", "offset": 1, "center_fraction": 0.01}]}]
    of = reconstruction(files, tmp_path, blocks=blocks)
    with pytest.raises(InputError, match=r"volume.\.h5: no calibration centre: columns 11 and 12"):
        train_reconstruction(of, console=QUIET)


def test_what_has_no_target_is_not_learned_from(tmp_path):
    values = kspace(slices=3)
    write_mrd(tmp_path / "a.h5", values, plain_header(values))
    of = reconstruction(tmp_path / "a.h5", tmp_path, data={"readout_rows": None})
    with pytest.raises(InputError, match=r"a.h5: has no target to learn from.*self_supervised"):
        train_reconstruction(of, console=QUIET)
    write_volumes(tmp_path / "files", 1)
    shutil.copy(tmp_path / "a.h5", tmp_path / "files" / "kspace" / "a.h5")
    of = reconstruction(tmp_path / "files", tmp_path, data={"skip_unusable": True})
    assert train_reconstruction(of, block=1, console=QUIET)


def test_what_is_validated_needs_a_target(files, tmp_path):
    shutil.copytree(files / "kspace", tmp_path / "kspace")
    of = reconstruction(files, tmp_path, data={"validation": str(tmp_path / "kspace"), "readout_rows": None})
    with pytest.raises(InputError, match=r"volume0.h5: has no target to learn from or to validate with"):
        train_reconstruction(of, console=QUIET)


def test_validation_leaves_files_to_train_on(files, tmp_path):
    for place, validation, said in (
        (files, str(files), "all files of '.*' are those of data.validation"),
        (files / "kspace" / "volume0.h5", 0.3, r"volume0.h5 is the only file, and data.validation=0.3"),
    ):
        with pytest.raises(InputError, match=said):
            train_reconstruction(reconstruction(place, tmp_path, data={"validation": validation}), console=QUIET)


def test_a_file_is_trained_or_validated_on_whatever_its_path_says(files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    (folder / "kspace" / "again.h5").symlink_to("volume0.h5")
    one = f"{folder}/../files/kspace/volume0.h5"
    found = find_files(reconstruction(folder, tmp_path, data={"validation": one}).data, seed=0, console=QUIET)
    assert [file.path.name for file in found.training] == ["volume1.h5", "volume2.h5"]
    assert len(found.validation) == 1


def test_files_of_one_subject_are_trained_or_validated_on(files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    for number in range(3):
        shutil.copy(folder / "kspace" / f"volume{number}.h5", folder / "kspace" / f"volume{number + 3}.h5")
    for number in range(6):
        with h5py.File(folder / "kspace" / f"volume{number}.h5", "r+") as file:
            file.attrs["patient_id"] = f"patient {number % 3}"
    of = reconstruction(folder, tmp_path, data={"validation": 0.3})
    for seed in range(4):
        found = find_files(of.data, seed=seed, console=QUIET)
        numbers = [{int(file.path.stem[-1]) % 3 for file in part} for part in found]
        assert len(found.validation) == 2
        assert not numbers[0] & numbers[1]
    for number in range(6):
        with h5py.File(folder / "kspace" / f"volume{number}.h5", "r+") as file:
            file.attrs["patient_id"] = "the only one"
    with pytest.raises(InputError, match=r"all 6 files of '.*' are of one subject: set data.validation to 0"):
        find_files(of.data, seed=0, console=QUIET)


def test_a_slice_that_is_turned_keeps_the_rows_of_its_target(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    values = kspace(columns=40)
    write_fastmri(folder / "wide.h5", values, plain_header(values))
    blocks = [{"epochs": 1, "augment": {"moves": {"rotate90": {"p_max": 1}}}}]
    of = reconstruction(folder, tmp_path, blocks=blocks, data={"readout_rows": 32}, run={"seed": 1})
    steps = ReconstructionSteps(of, find_files(of.data, seed=0, console=QUIET).training, neighbours=1)
    shapes = {tuple(steps.whole(micro).target.shape[1:]) for micro in range(steps.steps_per_epoch)}
    assert (40, 32) in shapes


def test_masks_that_do_not_fit_a_file_name_it(files, tmp_path):
    of = reconstruction(files, tmp_path, data={"acceleration": 500})
    with pytest.raises(InputError, match=r"volume.\.h5: acceleration must be at most the number of lines"):
        train_reconstruction(of, console=QUIET)


def test_a_key_that_no_move_has_is_named(files, tmp_path):
    blocks = [{"epochs": 1, "augment": {"moves": {"shear": {"p_maxx": 1}}}}]
    with pytest.raises(
        InputError, match=r"unknown key 'blocks.0.augment.moves.shear.p_maxx'; known here: p_max, decay"
    ):
        reconstruction(files, tmp_path, blocks=blocks)


def test_a_target_with_more_rows_than_are_left_is_refused(files, tmp_path):
    of = reconstruction(files, tmp_path, data={"readout_rows": 20})
    with pytest.raises(InputError, match=r"its target has 28 rows, and data.readout_rows is 20"):
        train_reconstruction(of, console=QUIET)


def test_other_files_do_not_continue_a_run(files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    of = reconstruction(folder, tmp_path)
    assert not train_reconstruction(of, console=QUIET, should_stop=stop_after(2))
    shutil.copy(folder / "kspace" / "volume0.h5", folder / "kspace" / "volume1.h5")
    with pytest.raises(InputError, match=r"volume1.h5 has changed"):
        train_reconstruction(of, resume=True, console=QUIET)


def test_the_command_trains_the_specialist_that_is_named(files, tmp_path):
    base = reconstruction(files, tmp_path).model_dump(mode="json") | {
        "specialists": {"four": {}, "eight": {"data.acceleration": 8, "blocks.1.augment": None}}
    }
    for block in base["blocks"]:
        del block["samplings"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(base))
    for options, said in (
        ((), "it is not said which specialist to train: --specialist takes one of eight, four"),
        (("--specialist", "six"), "there is no specialist 'six'"),
        (("--set", "specialists.none.data.acceleration=2"), "there is no specialist 'none'"),
        (("--set", "data.acceleratio=2", "--all"), "unknown key 'data.acceleratio'"),
    ):
        ended = voxelwave("reconstruct", "train", path, *options)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert said in ended.err
    assert voxelwave("reconstruct", "train", path, "--all", "--block", "1").code == 0
    for name, rate in (("four", 4), ("eight", 8)):
        config = load_reconstruction(tmp_path / "run" / name).config
        assert (config.data.acceleration, config.blocks[0].samplings[0].settings["acceleration"]) == (rate, rate)


def test_undersampled_files_without_targets_are_learned_from(tmp_path):
    """As a scanner writes them; the run then reconstructs its own files."""
    (tmp_path / "files").mkdir()
    for number in range(2):
        values = kspace(slices=3, seed=number)
        write_mrd(tmp_path / "files" / f"{number}.h5", values, plain_header(values), centre_and_every_fourth())
    of = reconstruction(
        tmp_path / "files",
        tmp_path,
        data={"readout_rows": None, "validation": 0.5},
        blocks=[{"epochs": 2, "learning_rate": 3e-3, "samplings": []}],
        training={"objective": {"name": "self_supervised"}, "accumulate": 1},
    )
    assert train_reconstruction(of, console=QUIET)
    records = measured(of)
    assert len(records) == 6
    assert all(np.isfinite(record["loss"]) for record in records)
    assert {record["epoch"] for record in records if "validation_loss" in record} == {1, 2}
    ended = voxelwave("reconstruct", "run", of.run_folder(), tmp_path / "files", tmp_path / "out")
    assert ended.code == 0, ended.err
