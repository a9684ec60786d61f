"""K-space that is made for who has none, as the package reads it back."""

import csv
import hashlib
import io
import json
import os
import re
import signal

import h5py
import nibabel
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from voxelwave.cli import app
from voxelwave.data.kspace.files import KspaceFile
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.reconstruct.synthesis import synthesize as job
from voxelwave.jobs.reconstruct.synthesis.config import SynthesisConfig
from voxelwave.jobs.reconstruct.synthesis.synthesize import BRIGHTEST, synthesize_kspace, synthesize_missing
from voxelwave.losses.image_mask import THRESHOLDS
from voxelwave.physics.fourier import ifft2c
from voxelwave.physics.prewhitening import noise_covariance

SMALL = {"volumes": 3, "slices": 3, "size": 32, "coils": 4}


def made(folder, **settings):
    assert synthesize_kspace(folder, console=Console(file=io.StringIO()), **(SMALL | settings)).exit_code == 0
    return folder


def arrays(folder):
    """A digest of each array by file and name."""
    found = {}
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, path=path: (
                    found.update(
                        {f"{path.relative_to(folder)}/{name}": hashlib.sha256(item[...].tobytes()).hexdigest()}
                    )
                    if isinstance(item, h5py.Dataset) and item.dtype.kind in "cfiub"
                    else None
                )
            )
    return found


def root_sum_of_squares(kspace):
    """NumPy's, [slice, coil, height, width] to [slice, height, width]."""
    axes = (-2, -1)
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)
    return np.sqrt((np.abs(images) ** 2).sum(1))


def nifti(path, array, *, spacing=(4.0, 4.0, 5.0), axes=(0, 1, 2)):
    """Write an array whose axes lead to right, front and up, stored in another order of axes."""
    affine = np.zeros((4, 4))
    for stored, axis in enumerate(axes):
        affine[axis, stored] = spacing[axis]
    affine[3, 3] = 1
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(axes)), affine), path)
    return path


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    return made(tmp_path_factory.mktemp("challenge"))


@pytest.fixture(scope="module")
def volume():
    """A box of 40 × 36 voxels and 20 slices, of which the upper half shows more than air."""
    generator = np.random.default_rng(0)
    array = np.zeros((40, 36, 20), np.float32)
    array[8:30, 4:34, 8:18] = 100 + 20 * generator.random((22, 30, 10), dtype=np.float32)
    return array


def test_the_layout_of_the_challenge_holds_whole_kspace_a_mask_and_targets(challenge, caplog):
    names = [f"brain_acc4_{number}.h5" for number in (1, 2, 3)]
    assert sorted(path.name for path in (challenge / "kspace").iterdir()) == names
    lines = np.arange(32) % 4 == 16 % 4
    lines[15:18] = True  # the round(0.08 × 32) around the origin
    for name in names:
        file = KspaceFile(challenge / "kspace" / name)
        assert (file.info.layout, len(file), file.info.num_coils, file.info.size) == ("challenge", 3, 4, (32, 32))
        np.testing.assert_array_equal(file.info.sampled, lines)
        kspace = torch.cat([file.slice(index) for index in range(3)]).numpy()
        targets = torch.stack([file.target(index) for index in range(3)])
        np.testing.assert_allclose(targets.numpy(), root_sum_of_squares(kspace), rtol=1e-4, atol=1e-9)
        assert file.info.data_range == float(targets.max()) == pytest.approx(BRIGHTEST, rel=0.05)
        # The head is above the threshold of the challenge's image mask, and the air around it is below.
        assert 0.4 < (targets > THRESHOLDS["brain"]).float().mean() < 0.7
        filled = torch.stack([file.image("image_input", index) for index in range(3)]).numpy()
        np.testing.assert_allclose(filled, root_sum_of_squares(kspace * lines), rtol=1e-4, atol=1e-9)
    assert not caplog.records  # such as of a centre that is off


def test_whole_files_of_fastmri_have_targets_and_files_of_a_test_a_mask(tmp_path):
    whole = made(tmp_path / "whole", layout="fastmri", oversampling=2)
    test = made(tmp_path / "test", layout="fastmri", oversampling=2, undersampled=True)
    first, second = KspaceFile(whole / "brain_2.h5"), KspaceFile(test / "brain_acc4_2.h5")
    assert (first.info.layout, first.info.size, first.info.target_size) == ("fastmri", (64, 32), (32, 32))
    assert (first.info.acquisition, first.info.sampled) == ("AXT2", None)
    kspace = first.slice(1)
    np.testing.assert_allclose(first.target(1).numpy(), root_sum_of_squares(kspace.numpy())[0, 16:48], rtol=1e-4)
    assert (second.info.has_target, second.info.image_size) == (False, (32, 32))
    sampled = torch.tensor(second.info.sampled)
    assert 0 < sampled.sum() < 16
    assert torch.equal(second.slice(1), kspace * sampled)


def test_ismrmrd_files_hold_a_noise_scan_and_where_the_slices_lie(tmp_path):
    settings = {"layout": "mrd", "volumes": 1, "oversampling": 2, "noise": 0.01}
    file = KspaceFile(made(tmp_path / "whole", **settings) / "brain_1.h5")
    assert (file.info.layout, len(file), file.info.size, all(file.info.sampled)) == ("mrd", 3, (32, 32), True)
    assert file.info.acquisition == "AXT1"
    assert file.info.dwell_time_ratio == 1
    # Neighbours in the ring share noise: n_i + c n_(i-1) over the root of 1 + c².
    covariance = noise_covariance(file.noise()) / (0.01 * BRIGHTEST) ** 2
    shared = 0.3 / (1 + 0.3**2)
    expected = torch.eye(4) + shared * (torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0))
    torch.testing.assert_close(covariance.abs().float(), expected, atol=0.06, rtol=0)
    # Rows lead to the back, columns to the left, slices upwards by one voxel, of 192 mm in 32.
    spacing = 192 / 32
    places = file.info.places
    assert (places[0].readout, places[0].phase, places[0].normal) == ((0, 1, 0), (1, 0, 0), (0, 0, 1))
    np.testing.assert_allclose([place.position_mm for place in places], [(0, 0, spacing * k) for k in range(3)])
    np.testing.assert_allclose(file.info.field_of_view_mm, (192, 192, spacing))
    fewer = KspaceFile(made(tmp_path / "fewer", **settings, undersampled=True) / "brain_acc4_1.h5")
    sampled = torch.tensor(fewer.info.sampled)
    assert torch.equal(fewer.slice(1), file.slice(1) * sampled)
    silent = KspaceFile(made(tmp_path / "silent", **(settings | {"noise": 0})) / "brain_1.h5")
    assert silent.info.dwell_time_ratio is None


def test_a_volume_depends_on_the_seed_and_its_number_alone(challenge, tmp_path):
    expected = arrays(challenge)
    assert arrays(made(tmp_path / "same")) == expected
    fewer = arrays(made(tmp_path / "fewer", volumes=1))
    assert fewer.items() <= expected.items()
    other = arrays(made(tmp_path / "other", seed=1, volumes=1))
    assert [name for name in other if other[name] == expected[name]] == ["kspace/brain_acc4_1.h5/mask"]
    # Coils and phase, too, are those of the volume.
    first, second = (
        ifft2c(KspaceFile(challenge / "kspace" / f"brain_acc4_{number}.h5").slice(1)[0]) for number in (1, 2)
    )
    share = [image.abs().square().mean((1, 2)) for image in (first, second)]
    assert not torch.allclose(share[0] / share[0].sum(), share[1] / share[1].sum(), rtol=0.05)


def test_a_call_that_was_interrupted_goes_on_and_keeps_what_is_there(challenge, tmp_path, monkeypatch):
    write = job._write_volume

    def stopped_at_the_second(volume, **settings):
        write(volume, **settings)
        if volume.number == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(job, "_write_volume", stopped_at_the_second)
    printed = io.StringIO()
    outcome = synthesize_kspace(tmp_path, console=Console(file=printed), **SMALL)
    assert outcome.exit_code == 130
    assert printed.getvalue().startswith("stopped, the same command goes on; so far 2 of 3 volumes")
    assert json.loads((tmp_path / "synthesize.json").read_text())["complete"] is False
    monkeypatch.undo()
    (tmp_path / "image" / "brain_acc4_2.h5").unlink()  # as where the process died between two files
    begun = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("brain_acc4_1.h5")}
    assert len(begun) == 2
    made(tmp_path)
    assert all(path.stat().st_mtime_ns == changed for path, changed in begun.items())
    assert arrays(tmp_path) == arrays(challenge)
    assert json.loads((tmp_path / "synthesize.json").read_text())["complete"] is True


def test_other_settings_are_refused(challenge):
    with pytest.raises(InputError, match=r"holds k-space made with coils 4 and not 5: delete it, or give another"):
        made(challenge, coils=5)
    with pytest.raises(InputError, match="is a file: give a folder"):
        made(challenge / "volumes.csv")


def test_scans_become_axial_slices_that_show_something(volume, tmp_path):
    # The second one is stored from top to bottom first, then front to back.
    for name, axes in (("a_T1.nii.gz", (0, 1, 2)), ("b_T1.nii", (2, 1, 0))):
        nifti(tmp_path / name, volume, axes=axes)
    nifti(tmp_path / "a_T1_labels.nii.gz", (volume > 0).astype(np.uint8))
    printed, found = io.StringIO(), tmp_path / "out"
    settings = SMALL | {"source": str(tmp_path / "*.nii*"), "size": 40, "noise": 0, "layout": "fastmri", "seed": 3}
    assert synthesize_kspace(found, console=Console(file=printed), **settings).complete
    labels, *_, end = printed.getvalue().splitlines()[1:]
    assert labels == f"  {tmp_path / 'a_T1_labels.nii.gz'}: a label map by its name ('labels')"
    assert end == f"2 volumes of k-space, all that '{settings['source']}' holds; {found}"
    rows = list(csv.DictReader((found / "volumes.csv").read_text().splitlines()))
    assert [(row["file"], row["made_of"].rpartition("/")[2]) for row in rows] == [
        ("volume_1.h5", "a_T1.nii.gz"),
        ("volume_2.h5", "b_T1.nii"),
    ]
    # From above: the front is the first row, the right of the patient the first column; then 2 pixels on each side.
    slices = volume[::-1, ::-1].transpose(2, 1, 0)
    slices = np.pad(slices / volume.max(), [(0, 0), (2, 2), (0, 0)])
    for number in (1, 2):
        file = KspaceFile(found / f"volume_{number}.h5")
        targets = torch.stack([file.target(index) for index in range(3)]).numpy() / BRIGHTEST
        # Three of those that show something, scaled by the brightest of them.
        possible = [slices[start : start + 3] / slices[start : start + 3].max() for start in range(8, 16)]
        assert [np.allclose(targets, chosen, atol=1e-5) for chosen in possible].count(True) == 1


def test_pixels_become_square_and_images_keep_their_proportions(volume, tmp_path):
    nifti(tmp_path / "scan_T1.nii.gz", volume, spacing=(2.0, 4.0, 2.5))
    settings = {"source": str(tmp_path / "scan_T1.nii.gz"), "layout": "mrd", "slices": 4, "noise": 0}
    file = KspaceFile(made(tmp_path / "fitted", **settings, size=48) / "volume_1.h5")
    # 36 × 4 mm from front to back fill 48 pixels of 3 mm; 40 × 2 mm across are 27 of them.
    np.testing.assert_allclose(file.info.field_of_view_mm, (144, 144, 5))
    image = np.abs(ifft2c(file.slice(1)[0]).numpy()).max(0)
    shown = np.flatnonzero(image.max(0) > 0.3 * image.max())
    assert shown[-1] - shown[0] + 1 == pytest.approx(22 * 2 / 3, abs=1)
    kept = KspaceFile(made(tmp_path / "kept", **settings, size=None) / "volume_1.h5")
    assert kept.info.size == (36, 40)
    np.testing.assert_allclose(kept.info.field_of_view_mm, (36 * 4, 40 * 2, 5), rtol=1e-6)


def test_stacks_of_images_are_taken_as_they_are(tmp_path):
    stack = np.random.default_rng(1).random((8, 36, 32), dtype=np.float32) - 0.1
    np.savez(tmp_path / "images.npz", ages=np.arange(3), images=stack, others=stack[:, :4, :4])
    np.save(tmp_path / "images.npy", stack)
    settings = {"size": None, "noise": 0, "layout": "fastmri", "anatomy": "knee"}
    first, second = (
        made(tmp_path / kind, source=str(tmp_path / f"images.{kind}"), **settings) for kind in ("npz", "npy")
    )
    assert arrays(first) == arrays(second)
    # Two volumes of 3 slices; 2 images are left over.
    assert sorted(path.name for path in first.glob("*.h5")) == ["knee_1.h5", "knee_2.h5"]
    for number in (0, 1):
        file = KspaceFile(first / f"knee_{number + 1}.h5")
        part = stack[3 * number : 3 * number + 3]
        expected = BRIGHTEST * (part - part.min()) / (part.max() - part.min())
        targets = torch.stack([file.target(index) for index in range(3)]).numpy()
        np.testing.assert_allclose(targets, expected, atol=1e-6 * BRIGHTEST * 10)


def test_phantoms_are_a_source_too(tmp_path):
    file = KspaceFile(made(tmp_path, source="phantoms", layout="fastmri", volumes=1) / "brain_1.h5")
    assert (file.info.acquisition, len(file)) == ("SYNTHETIC", 3)
    assert not torch.equal(file.target(0), file.target(1))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"volumes": 0}, "settings: key 'volumes'"),
        ({"size": 16}, "settings: key 'size'"),
        ({"size": None}, "size is needed for generated heads"),
        ({"noise": float("nan")}, "settings: key 'noise'"),
        ({"layout": "dicom"}, "settings: key 'layout'"),
        ({"acceleration": 2.5}, "settings: key 'acceleration'"),
        ({"acceleration": 40}, "a k-space of 32 columns cannot be sampled so: acceleration must be at most"),
        ({"center_fraction": 0.01}, "a center_fraction of 0.01 leaves 32 columns no calibration centre"),
        ({"undersampled": True}, "undersampled files are of the layouts fastmri and mrd"),
        ({"heads": 3}, "known here: source, volumes"),
        ({"source": "nowhere"}, "'nowhere' does not exist"),
        ({"source": "nowhere.npz"}, "nowhere.npz: no such file"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(tmp_path, settings, problem):
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        made(tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def few(array):
    array = array.copy()
    array[:, :, :16] = 0
    return array


def with_nan(array):
    array = array.copy()
    array[3, 4, 5] = np.nan
    return array


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (np.zeros_like, "every value is 0"),
        (with_nan, "holds NaN or infinite values"),
        (few, "too few slices that show enough: 2, and 3 are asked for"),
        (lambda array: array[:16], "too small: a slice needs 32 pixels a side, got 36 × 16"),
        (lambda array: np.stack([array] * 3, 3), "one channel is needed, got shape (40, 36, 20, 3)"),
        (lambda array: np.round(array / 100), "a label map by its content"),
    ],
)
def test_scans_that_are_no_images_are_said_by_name(volume, tmp_path, spoil, problem):
    array = spoil(volume)
    path = tmp_path / "scan_T1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, np.diag([4.0, 4.0, 5.0, 1.0])), path)
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        made(tmp_path / "out", source=str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((3, 40)), "holds no array of three axes"),
        (np.zeros((2, 40, 40)), "too few images for a volume: 2, and 3 slices are asked for"),
        (np.ones((3, 40, 40)), "holds no image: every value is 1"),
        (np.full((3, 40, 40), np.inf), "holds NaN or infinite values"),
        (np.ones((3, 40, 40), complex), "of type complex128, real magnitudes are needed"),
        (np.arange(3 * 16 * 40.0).reshape(3, 16, 40), "too small"),
        (np.array([[["a", {}]]], dtype=object), "Object arrays cannot be loaded"),
    ],
)
def test_stacks_that_are_no_images_are_said_by_name(tmp_path, array, problem):
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        made(tmp_path / "out", source=str(tmp_path / "images.npy"))
    assert str(caught.value).startswith(f"{tmp_path / 'images.npy'}")
    assert "\n" not in str(caught.value)


def test_data_are_made_where_they_are_missing_and_there_alone(challenge, tmp_path, monkeypatch):
    settings = SynthesisConfig(**SMALL)
    silent = Console(file=io.StringIO())
    assert synthesize_missing(tmp_path / "new", settings, console=silent).complete
    assert arrays(tmp_path / "new") == arrays(challenge)
    # A folder that is finished is not even written to, one with other files is somebody's data.
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file1.h5").write_bytes(b"")
    monkeypatch.setattr(job, "synthesize_kspace", None)
    assert synthesize_missing(tmp_path / "new", settings).complete
    assert synthesize_missing(tmp_path / "own", settings).complete
    with pytest.raises(InputError, match="made with seed 0 and not 1"):
        synthesize_missing(tmp_path / "new", SynthesisConfig(**SMALL, seed=1))


def test_the_command_has_the_defaults_of_the_configuration(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(job, "synthesize_kspace", lambda out, **settings: asked.update(settings) or job.Outcome())
    assert CliRunner().invoke(app, ["reconstruct", "synthesize", str(tmp_path)]).exit_code == 0
    assert asked == SynthesisConfig().model_dump()
    CliRunner().invoke(app, ["reconstruct", "synthesize", str(tmp_path), "--size", "0", "--source", "images.npy"])
    assert SynthesisConfig(**asked).size is None
