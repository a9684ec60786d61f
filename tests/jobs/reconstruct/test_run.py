import json
import os
import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from support.command import voxelwave
from support.kspace_files import centre_and_every_fourth, kspace
from support.reconstruction_runs import reconstruction, write_volumes
from support.stopping import stop_after
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.images.reading import read_hdf5
from voxelwave.data.kspace.synthesis import coil_noise
from voxelwave.data.kspace.writing import plain_header, write_fastmri, write_mrd
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.config import CoilsConfig
from voxelwave.jobs.reconstruct.model import load_reconstruction
from voxelwave.jobs.reconstruct.picking import Specialist, drawn_rate
from voxelwave.jobs.reconstruct.preparation import Preparation
from voxelwave.jobs.reconstruct.run import reconstruct_files
from voxelwave.jobs.reconstruct.train import train_reconstruction
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fourier import center_crop, crop_readout, ifft2c
from voxelwave.physics.sampled_lines import acceleration_of
from voxelwave.physics.samplings.fastmri import FastMRILines
from voxelwave.unrolled.zero_filled import zero_filled

QUIET = Console(quiet=True)
COLUMNS = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("kspace"), 2)


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """Two specialists, for 4 and for 8, beside each other."""
    folder = tmp_path_factory.mktemp("runs")
    for rate in (4, 8):
        blocks = [{"epochs": 1, "samplings": [{"name": "equispaced", "offset": "origin", "acceleration": rate}]}]
        of = reconstruction(files, folder, f"rate{rate}", data={"acceleration": rate}, blocks=blocks)
        assert train_reconstruction(of, console=QUIET)
    return folder


def by_hand(run, path, index):
    """One slice, as the network is called in training."""
    network, config = load_reconstruction(run)
    file = KspaceFile(path)
    values = crop_readout(file.slice(index, neighbours=1), config.data.readout_rows)
    sampled = torch.tensor(file.info.sampled)
    with torch.no_grad():
        return center_crop(network((values * sampled)[None], sampled[None]), file.info.target_size)[0].numpy()


def test_a_volume_is_what_the_network_makes_of_its_slices(runs, files, tmp_path):
    assert reconstruct_files(runs / "rate4", str(files), tmp_path, console=QUIET).exit_code == 0
    found = read_hdf5(tmp_path / "volume1.h5")
    assert (found.images.shape, found.images.dtype) == ((3, 28, 24), np.float32)
    assert (found.method, found.specialist, found.anatomy) == ("network", "rate4", "")
    assert found.acceleration == pytest.approx(4)
    assert found.sampled.tolist() == centre_and_every_fourth().tolist()
    for index in range(3):
        wanted = by_hand(runs / "rate4", files / "kspace" / "volume1.h5", index)
        np.testing.assert_allclose(found.images[index], wanted, rtol=1e-4, atol=1e-6)


def test_several_slices_or_single_coils_at_once_are_the_same(runs, files, tmp_path):
    for name, at_once in (("one", {}), ("two", {"slices_at_once": 2}), ("coil", {"coils_at_once": 1})):
        reconstruct_files(runs / "rate4", str(files), tmp_path / name, **at_once, console=QUIET)
    one, two, coil = (read_hdf5(tmp_path / name / "volume0.h5").images for name in ("one", "two", "coil"))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one, coil, rtol=1e-4, atol=1e-6)


def test_the_specialist_is_picked_by_the_mask_and_not_by_the_name(runs, files, tmp_path, caplog):
    folder = tmp_path / "files"
    folder.mkdir()
    lines = torch.arange(64)
    centre = (lines - 32).abs() < 3
    for name, rate in (("rate4.h5", 8), ("other.h5", 4), ("far.h5", 2)):
        values = kspace(slices=3, columns=64)
        write_fastmri(folder / name, values, plain_header(values), (lines % rate == 0) | centre)
    assert reconstruct_files(runs, str(folder), tmp_path / "out", console=QUIET).exit_code == 0
    picked = {name: read_hdf5(tmp_path / "out" / f"{name}.h5").specialist for name in ("rate4", "other", "far")}
    assert picked == {"rate4": "rate8", "other": "rate4", "far": "rate4"}
    assert "an acceleration of 2, and the nearest specialist" in caplog.text


def test_classical_methods_see_the_same_samples(runs, files, tmp_path):
    reconstruct_files(runs / "rate4", str(files), tmp_path, method="zero_filled", console=QUIET)
    found = read_hdf5(tmp_path / "volume0.h5")
    file = KspaceFile(files / "kspace" / "volume0.h5")
    sampled = torch.tensor(file.info.sampled)
    wanted = zero_filled(crop_readout(file.slice(1), 30)[None] * sampled, sampled[None])
    np.testing.assert_allclose(found.images[1], center_crop(wanted, (28, 24))[0].numpy(), atol=1e-6)
    assert (found.method, found.specialist) == ("zero_filled", "")


def test_a_classical_method_needs_no_anatomy(runs, files, tmp_path):
    of = load_reconstruction(runs / "rate4").config.model_dump(mode="json")
    anatomies = {"one": {"data.anatomy": "brain"}, "other": {"data.anatomy": "knee", "data.acceleration": 8}}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(of | {"specialists": anatomies}))
    reconstruct_files(tmp_path / "both.yaml", str(files), tmp_path / "both", method="sense", console=QUIET)
    reconstruct_files(runs / "rate4", str(files), tmp_path / "one", method="sense", console=QUIET)
    both, one = (read_hdf5(tmp_path / out / "volume0.h5") for out in ("both", "one"))
    np.testing.assert_array_equal(both.images, one.images)
    assert both.anatomy == ""


def test_a_pipe_among_the_kspace_is_refused(runs, files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    os.mkfifo(folder / "kspace" / "pipe.h5")
    outcome = reconstruct_files(runs / "rate4", str(folder), tmp_path / "out", method="zero_filled", console=QUIET)
    assert outcome.unusable == 1


def test_a_configuration_will_do_for_a_classical_method(runs, files, tmp_path):
    config = tmp_path / "mine.yaml"
    of = load_reconstruction(runs / "rate4").config
    config.write_text(yaml.safe_dump(of.model_dump(mode="json")))
    for run, out in ((config, "by config"), (runs / "rate4", "by run")):
        reconstruct_files(run, str(files), tmp_path / out, method="sense", regularisation=0.1, console=QUIET)
    one, other = (read_hdf5(tmp_path / out / "volume0.h5") for out in ("by config", "by run"))
    np.testing.assert_array_equal(one.images, other.images)
    assert one.acceleration == other.acceleration
    weaker = {"method": "sense", "regularisation": 0.0}
    with pytest.raises(InputError, match="holds reconstructions by another method"):
        reconstruct_files(runs / "rate4", str(files), tmp_path / "by run", **weaker, console=QUIET)
    reconstruct_files(runs / "rate4", str(files), tmp_path / "weaker", **weaker, console=QUIET)
    assert not np.array_equal(read_hdf5(tmp_path / "weaker" / "volume0.h5").images, one.images)
    for method, value, said in (
        ("network", 0.1, "method 'network' has no regularisation; these have one: sense"),
        ("sense", -1.0, "at least 0, got -1"),
    ):
        with pytest.raises(InputError, match=said):
            reconstruct_files(
                runs / "rate4", str(files), tmp_path / "out", method=method, regularisation=value, console=QUIET
            )


@pytest.mark.parametrize("rate", [4.0, 8.0])
def test_random_lines_are_of_the_rate_that_they_were_drawn_for(tmp_path, rate):
    """And not of one for each count of lines that chance gave."""
    sampling = {"name": "fastmri", "kind": "random", "acceleration": rate, "center_fraction": 0.04}
    blocks = [{"epochs": 1, "samplings": [sampling]}]
    of = reconstruction(tmp_path, tmp_path, data={"acceleration": 6.0}, blocks=blocks)
    specialist = Specialist("one", drawn_rate(of, 368), "network", zero_filled, 0, of)

    def rates(acceleration, *, drawn):
        masks = FastMRILines(kind="random", acceleration=acceleration, center_fraction=0.04)
        read = [acceleration_of(masks((1, 368), torch_generator(key))[0]) for key in range(100)]
        return [specialist.as_configured(of, drawn=drawn).nominal for of in read]

    assert set(rates(rate, drawn=True)) == {rate}
    assert specialist.config.data.acceleration != rate  # what the masks themselves say counts
    assert rates(rate, drawn=False).count(rate) >= 97
    assert rates(2 * rate, drawn=False).count(rate) < 50  # of another rate


def test_an_image_is_not_smaller_than_the_target_whatever_was_trained_on(runs, files, tmp_path):
    folder = shutil.copytree(runs / "rate4", tmp_path / "run")
    checkpoint = torch.load(folder / "best_model.pth", weights_only=True)
    checkpoint["config"]["data"]["readout_rows"] = 16
    torch.save(checkpoint, folder / "best_model.pth")
    assert reconstruct_files(folder, str(files), tmp_path / "out", console=QUIET).exit_code == 0
    assert read_hdf5(tmp_path / "out" / "volume0.h5").images.shape == (3, 28, 24)


def test_one_run_says_that_a_rate_is_far_from_its_own_too(runs, tmp_path, caplog):
    values, lines = kspace(slices=1, columns=64), torch.arange(64)
    write_fastmri(tmp_path / "a.h5", values, plain_header(values), (lines % 8 == 0) | ((lines - 32).abs() < 3))
    reconstruct_files(runs / "rate4", str(tmp_path / "a.h5"), tmp_path / "out", console=QUIET)
    assert "an acceleration of 8, and the nearest specialist of , rate4, was trained for 4" in caplog.text


def test_the_reason_of_a_single_file_is_said_once(runs, files, tmp_path):
    broken = tmp_path / "broken.h5"
    broken.write_bytes((files / "kspace" / "volume0.h5").read_bytes()[:3000])
    ended = voxelwave("reconstruct", "run", runs / "rate4", broken, tmp_path / "out")
    assert ended.code == 2
    assert (ended.out + ended.err).count("broken.h5") == 1


def test_whole_kspace_is_undersampled_as_the_run_validates(runs, tmp_path):
    values = kspace(slices=3)
    write_fastmri(tmp_path / "whole.h5", values, plain_header(values))
    reconstruct_files(runs / "rate8", str(tmp_path / "whole.h5"), tmp_path / "out", console=QUIET)
    sampled = read_hdf5(tmp_path / "out" / "whole.h5").sampled
    lines = np.arange(COLUMNS)
    assert sampled.tolist() == ((lines % 8 == 12 % 8) | ((lines == 11) | (lines == 12))).tolist()


def test_all_formats_hold_the_same_volume(runs, tmp_path):
    pytest.importorskip("pydicom")
    values = kspace(slices=3)
    noise = coil_noise(3, 100, torch_generator(0), sigma=0.01)
    write_mrd(tmp_path / "scan.h5", values, plain_header(values), centre_and_every_fourth(), noise)
    of = load_reconstruction(runs / "rate4").config
    assert of.data.readout_rows == 30
    formats = ("hdf5", "nifti", "dicom", "png")
    out = tmp_path / "out"
    (out / "scan").mkdir(parents=True)  # as where other results lie in a folder of that name
    assert reconstruct_files(runs / "rate4", str(tmp_path / "scan.h5"), out, formats=formats, console=QUIET).complete
    images = read_hdf5(out / "scan.h5").images
    stored = nib.load(out / "scan.nii.gz").get_fdata()
    np.testing.assert_allclose(np.moveaxis(stored, -1, 0), images, rtol=1e-5, atol=1e-6)
    assert len(list((out / "scan").glob("*.dcm"))) == 3
    assert (out / "scan.png").is_file()


def test_it_goes_on_and_keeps_what_is_there(runs, files, tmp_path):
    outcome = reconstruct_files(runs / "rate4", str(files), tmp_path, console=QUIET, should_stop=stop_after(2))
    assert outcome.exit_code == 130
    assert [path.name for path in tmp_path.glob("*.h5")] == ["volume0.h5"]
    with h5py.File(tmp_path / "volume0.h5", "a") as file:
        file.attrs["kept"] = True
    assert reconstruct_files(runs / "rate4", str(files), tmp_path, console=QUIET).exit_code == 0
    with h5py.File(tmp_path / "volume0.h5") as file:
        assert file.attrs["kept"]
    for options in ({"method": "sense"}, {"run": runs / "rate8"}):
        with pytest.raises(InputError, match="another method or other weights"):
            reconstruct_files(**{"run": runs / "rate4", "source": str(files), "out": tmp_path, **options})


def test_what_cannot_be_reconstructed_is_listed(runs, files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    with h5py.File(folder / "kspace" / "volume0.h5", "a") as file:
        file["kspace"][1, 0, 0, 0] = np.nan
    ended = voxelwave("reconstruct", "run", runs / "rate4", folder, tmp_path / "out")
    assert ended.code == 1
    assert "cannot be reconstructed: 1 of 2" in ended.out
    assert "volume0.h5: slice" in ended.out
    assert json.loads((tmp_path / "out" / "reconstruct.json").read_text())["method"] == "network"


def test_results_may_lie_in_the_folder_of_the_kspace(runs, files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    for _ in range(2):
        assert reconstruct_files(runs / "rate4", str(folder), folder / "out", console=QUIET).exit_code == 0
    with pytest.raises(InputError, match="holds all k-space of"):
        reconstruct_files(runs / "rate4", str(folder / "kspace"), folder, console=QUIET)


def test_other_results_in_the_folder_of_the_kspace_are_no_kspace(runs, files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    for method in ("zero_filled", "sense"):
        outcome = reconstruct_files(runs / "rate4", str(folder), folder / method, method=method, console=QUIET)
        assert outcome.exit_code == 0


def test_what_lies_where_a_result_belongs_is_not_taken_for_it(runs, files, tmp_path):
    folder = shutil.copytree(files, tmp_path / "files")
    with pytest.raises(InputError, match=r"image/volume0.h5 is of another file of this name"):
        reconstruct_files(runs / "rate4", str(folder / "kspace"), folder / "image", console=QUIET)


def test_an_interrupted_series_is_written_again(runs, tmp_path):
    pytest.importorskip("pydicom")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        values = kspace(slices=3) * len(name + name[0] * (name == "two"))
        write_mrd(tmp_path / name / "scan.h5", values, plain_header(values), centre_and_every_fourth())
    again = {"run": runs / "rate4", "source": str(tmp_path), "out": tmp_path / "out", "formats": ("dicom",)}
    reconstruct_files(**again, method="zero_filled", console=QUIET)
    series = tmp_path / "out" / "one" / "scan"
    (series / "0001.dcm").unlink()  # the last one to be written
    reconstruct_files(**again, method="zero_filled", console=QUIET)
    assert len(list(series.glob("*.dcm"))) == 3
    # Two scans of one name are of two studies, and of two places.
    import pydicom

    one, two = (pydicom.dcmread(tmp_path / "out" / name / "scan" / "0001.dcm") for name in ("one", "two"))
    assert one.StudyInstanceUID != two.StudyInstanceUID
    assert one.FrameOfReferenceUID != two.FrameOfReferenceUID


def test_a_format_that_cannot_hold_a_volume_keeps_no_other_from_it(runs, tmp_path):
    values = kspace(slices=3)
    write_mrd(tmp_path / "scan.h5", values, plain_header(values), centre_and_every_fourth())
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        table = file["dataset/data"][:]
        table["head"]["position"][table["head"]["idx"]["slice"] == 2, 2] = 90
        file["dataset/data"][:] = table
    ended = voxelwave(
        *("reconstruct", "run", runs / "rate4", tmp_path / "scan.h5", tmp_path / "out"),
        *("--method", "zero_filled", "--format", "nifti,hdf5"),
    )
    assert ended.code == 2
    assert f"{tmp_path / 'scan.h5'}: its slices are turned against each other, or unevenly spaced" in ended.err
    assert read_hdf5(tmp_path / "out" / "scan.h5").images.shape == (3, 32, 24)


def test_kspace_that_is_undersampled_and_says_no_mask_is_taken_as_it_is(runs, tmp_path):
    sampled = centre_and_every_fourth()
    values = kspace(slices=3)
    write_fastmri(tmp_path / "a.h5", values * sampled, plain_header(values))
    reconstruct_files(runs / "rate8", str(tmp_path / "a.h5"), tmp_path / "out", method="zero_filled", console=QUIET)
    assert read_hdf5(tmp_path / "out" / "a.h5").sampled.tolist() == sampled.tolist()


@pytest.mark.parametrize("rows", [29, 30, 31])
def test_the_middle_of_the_readout_is_that_of_the_image_whatever_is_odd(files, rows):
    file = KspaceFile(files / "kspace" / "volume0.h5")
    values, everywhere = file.slice(1), torch.ones(32, COLUMNS, dtype=torch.bool)
    kept, _ = Preparation(coils=CoilsConfig(), readout_rows=rows)(values, everywhere, file)
    found, wanted = (center_crop(ifft2c(of), (27, COLUMNS)) for of in (kept, values))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_result_of_another_file_of_the_name_is_not_taken_for_it(runs, files, tmp_path):
    reconstruct_files(runs / "rate4", str(files), tmp_path / "out", console=QUIET)
    folder = shutil.copytree(files, tmp_path / "files")
    with h5py.File(folder / "kspace" / "volume0.h5", "a") as file:
        file["kspace"][...] *= 2
    ended = voxelwave("reconstruct", "run", runs / "rate4", folder, tmp_path / "out")
    assert ended.code == 1
    assert "volume0.h5 is of another file of this name" in ended.out


def test_a_damaged_record_is_said(runs, files, tmp_path):
    for content in (b"{", b"\xff\xfe", b"[1]", b'{"files": 3}'):
        (tmp_path / "reconstruct.json").write_bytes(content)
        with pytest.raises(InputError, match=r"reconstruct.json cannot be read"):
            reconstruct_files(runs / "rate4", str(files), tmp_path, console=QUIET)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "magic"), "unknown method 'magic'; known: network, zero_filled, sense, l1_wavelet, grappa"),
        (("--format", "hdf5,jpeg"), "unknown format 'jpeg'; known: hdf5, nifti, dicom, png"),
        (("--slices-at-once", "0"), "slices_at_once is at least 1"),
        (("--coils-at-once", "0"), "coils_at_once is at least 1"),
    ],
)
def test_what_does_not_fit_is_one_line(runs, files, tmp_path, options, said):
    ended = voxelwave("reconstruct", "run", runs / "rate4", files, tmp_path, *options)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert said in ended.err


def test_a_file_in_the_place_of_the_folder_is_said(runs, files):
    ended = voxelwave("reconstruct", "run", runs / "rate4", files, files / "kspace" / "volume0.h5")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "volume0.h5 is a file: give a folder to write the volumes to" in ended.err


def test_a_folder_without_runs_is_said(files, tmp_path):
    ended = voxelwave("reconstruct", "run", tmp_path, files, tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "holds no run" in ended.err
