import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import torch

from voxelwave.data.kspace.files import KspaceFile
from voxelwave.data.kspace.writing import plain_header, write_fastmri
from voxelwave.errors import InputError
from voxelwave.jobs.common.console import Console
from voxelwave.jobs.subsample.config import SubsampleData
from voxelwave.jobs.subsample.images import read_stored, store
from voxelwave.jobs.subsample.parts import load_images, part
from voxelwave.jobs.subsample.scoring import open_once, score, zero_filled
from voxelwave.jobs.subsample.sources import Volumes
from voxelwave.ops.seeding import torch_generator
from voxelwave.physics.fixed_masks import half_plane, random_mask
from voxelwave.physics.fourier import fft2c, ifft2c
from voxelwave.unrolled.subsampling import FixedMask


def phantoms(**settings):
    return SubsampleData(**{"source": "phantoms", "volumes": 6, "slices": 2, "size": 32, **settings})


def write(path, images, sampled=None, **options):
    """Write k-space of images [slice, coil, rows, columns] as a file of fastMRI."""
    kspace = fft2c(images + 0j)
    header = plain_header(kspace, oversampling=1, protocol="KNEE", spacing_mm=(1.0, 1.0, 4.0))
    write_fastmri(path, kspace, header, sampled, **options)


def volumes(subjects):
    return Volumes([f"volume {index}" for index in range(len(subjects))], subjects, lambda _: None, "")


@pytest.mark.parametrize("number", [3, 4, 7, 20, 100])
def test_parts_have_their_shares_and_one_volume_at_least(number):
    parts = part(volumes([""] * number), validation=0.1, test=0.2, seed=0)
    assert sorted(one for of in parts.values() for one in of) == list(range(number))
    sizes = {name: len(of) for name, of in parts.items()}
    assert min(sizes.values()) >= 1
    if number >= 20:
        assert sizes == {"training": 0.7 * number, "validation": 0.1 * number, "test": 0.2 * number}


def test_a_subject_is_in_one_part_whatever_its_number_of_volumes():
    subjects = [f"subject {index // 4}" for index in range(40)]
    for seed in range(5):
        parts = part(volumes(subjects), validation=0.1, test=0.2, seed=seed)
        of = {name: {subjects[number] for number in numbers} for name, numbers in parts.items()}
        assert not of["training"] & of["test"]
        assert not of["training"] & of["validation"]
        assert not of["validation"] & of["test"]
        assert all(of.values())


@pytest.mark.parametrize(("of_one", "others"), [(30, 20), (60, 6)])
def test_a_subject_with_many_volumes_is_trained_on_and_the_others_fill_validation_and_test(of_one, others):
    subjects = ["one"] * of_one + [f"subject {index // 2}" for index in range(2 * others)]
    for seed in range(50):
        parts = part(volumes(subjects), validation=0.1, test=0.2, seed=seed)
        assert {"one"} <= {subjects[number] for number in parts["training"]}
        sizes = {name: len(of) / len(subjects) for name, of in parts.items()}
        assert sizes["test"] == pytest.approx(min(0.2, (2 * others - 2) / len(subjects)), abs=0.03)
        if others > 6:
            assert sizes["validation"] == pytest.approx(0.1, abs=0.03)


def test_too_few_subjects_are_one_clear_line():
    with pytest.raises(InputError, match=r"too few images for the split: .* a subject each, and there are 2"):
        part(volumes(["a", "a", "a", "b"]), validation=0.1, test=0.2, seed=0)
    with pytest.raises(InputError, match="too few images"):
        load_images(phantoms(volumes=2))


def test_the_images_follow_from_the_settings_alone_and_the_test_is_read_last():
    one, other = load_images(phantoms()), load_images(phantoms())
    assert torch.equal(one.training.kspace, other.training.kspace)
    assert not torch.equal(one.training.kspace, load_images(phantoms(seed=1)).training.kspace)
    test = one.open_test()
    assert torch.equal(test.kspace, other.open_test().kspace)
    assert not {*test.subjects} & {*one.training.subjects}
    assert one.counts == {"training": 4, "validation": 1, "test": 1}


def test_a_stack_has_no_subjects_which_is_said_and_an_image_twice_is_an_error(tmp_path, capsys):
    images = np.random.default_rng(0).random((9, 32, 32), dtype=np.float32)
    np.save(tmp_path / "stack.npy", images)
    data = SubsampleData(source=str(tmp_path / "stack.npy"), volumes=9, slices=1, size=32)
    parted = load_images(data, console=Console())
    # Results and pages name images, and no folder of this machine.
    assert all(name.startswith("stack.npy, images ") for name in (*parted.training.names, *parted.open_test().names))
    assert parted.kind == "semi-synthetic images of stack.npy"
    assert "nothing tells whose 9 of the volumes are" in capsys.readouterr().out
    np.save(tmp_path / "stack.npy", np.concatenate([images[:1]] * 9))
    with pytest.raises(InputError, match=r"are the same, and in two parts: leave one of them out"):
        load_images(data)


def test_an_image_that_no_test_can_have_is_said_before_anything_is_trained(tmp_path):
    images = np.random.default_rng(0).random((9, 32, 32), dtype=np.float32)
    data = SubsampleData(source=str(tmp_path / "stack.npy"), volumes=9, slices=1, size=32)
    np.save(tmp_path / "stack.npy", images)
    parted = load_images(data)
    name = parted.open_test().names[0]
    number = int(name.split()[-1])
    images[number] = 0.25
    np.save(tmp_path / "stack.npy", images)
    with pytest.raises(InputError, match=f"images {number} to {number}: holds no image: every value is 0.25"):
        load_images(data)
    images[number] = images[int(parted.training.names[0].split()[-1])]
    np.save(tmp_path / "stack.npy", images)
    with pytest.raises(InputError, match="are the same, and in two parts"):
        load_images(data)


def test_what_a_source_holds_beyond_what_is_asked_for_is_said(tmp_path, capsys):
    np.save(tmp_path / "stack.npy", np.random.default_rng(0).random((13, 32, 32), dtype=np.float32))
    data = SubsampleData(source=str(tmp_path / "stack.npy"), volumes=4, slices=2, size=32)
    load_images(data, console=Console())
    assert "stack.npy holds 5 images more: data.volumes is 4, data.slices 2" in " ".join(
        capsys.readouterr().out.split()
    )
    load_images(data.model_copy(update={"volumes": 13, "slices": 1}), console=Console())
    assert "more" not in capsys.readouterr().out


def test_images_of_several_sizes_and_images_that_are_0_are_refused(tmp_path):
    for index, side in enumerate((32, 32, 34, 40)):
        write(tmp_path / f"file{index}.h5", torch.rand(2, 1, side, 32, generator=torch_generator(index)))
    data = SubsampleData(source=str(tmp_path), size=None)
    with pytest.raises(InputError, match=r"images are .* 32, and others .*: set data.size to one size|two sizes"):
        load_images(data)


@pytest.mark.parametrize("side", [32, 33])
def test_phase_takes_the_trick_with_conjugates_away(side):
    """Half of the k-space of magnitudes tells the other half; of complex images it does not."""
    found = {}
    for phase in (False, True):
        images = load_images(phantoms(phase=phase, size=side)).training
        half = half_plane(images.shape, drop_rate=0.45)
        completed = score(zero_filled(FixedMask(half, completes=True)), images).summary()["psnr_db"]
        found[phase] = completed
    assert found[False] > 100
    assert found[True] < 40


def test_a_fixed_masks_zero_filled_psnr_is_that_of_numpy():
    images = load_images(phantoms()).training
    mask = random_mask(images.shape, torch_generator(0), drop_rate=0.3, keep_zero=True)
    kspace = images.kspace.numpy().astype(np.complex128)

    def image(values):
        return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(values, axes=(1, 2)), norm="ortho"), axes=(1, 2))

    target, made = np.abs(image(kspace)), np.abs(image(kspace * mask.numpy()))
    expected = 10 * np.log10(target.max((1, 2)) ** 2 / ((made - target) ** 2).mean((1, 2)))
    np.testing.assert_allclose(score(zero_filled(FixedMask(mask)), images).psnr_db, expected, atol=1e-4)


def test_what_is_stored_holds_all_but_the_test(tmp_path):
    parted = load_images(phantoms())
    store(parted, tmp_path / "images")
    stored = load_images(SubsampleData(source=str(tmp_path / "images")))
    assert torch.equal(stored.training.kspace, parted.training.kspace)
    assert stored.validation[1:] == parted.validation[1:]
    assert stored.open_test is None
    whole = (tmp_path / "images" / "validation.npy").read_bytes()
    for content in (b"", b"PK\3\4", b"\x93NUMPY nonsense", whole.replace(b"(2, 32, 32)", b"(9999999999, 32, 32)")):
        (tmp_path / "images" / "validation.npy").write_bytes(content)
        with pytest.raises(InputError, match="its images cannot be used"):
            read_stored(tmp_path / "images")


def test_a_scan_under_two_names_is_found_whatever_its_slices(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(6):
        array = generator.random((40, 40, 24), dtype=np.float32) * 100
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / f"sub-{index}_T1w.nii")
    data = SubsampleData(source=str(tmp_path), slices=3, size=40, volumes=20)
    load_images(data).open_test()
    for index in range(6):
        shutil.copy(tmp_path / f"sub-{index}_T1w.nii", tmp_path / f"sub-{index + 6}_T1w.nii")
    with pytest.raises(InputError, match="are the same, and in two parts"):
        load_images(data).open_test()


def test_a_black_image_of_a_stack_is_refused_and_magnitudes_get_no_noise(tmp_path):
    images = np.random.default_rng(0).random((8, 32, 32), dtype=np.float32)
    images[5] = 0
    np.save(tmp_path / "stack.npy", images)
    data = SubsampleData(source=str(tmp_path / "stack.npy"), volumes=4, slices=2, size=32)
    with pytest.raises(InputError, match="image 1 is constant, and shows nothing"):
        load_images(data).open_test()
    exact = load_images(phantoms(phase=False)).training
    assert ifft2c(exact.kspace).imag.abs().max() < 1e-5
    assert ifft2c(exact.kspace).real.abs().amax((1, 2)).max() == pytest.approx(1, abs=1e-5)


def test_files_that_a_scanner_filled_with_0_at_the_sides_are_taken_and_said(tmp_path, monkeypatch):
    for index in range(4):
        write(
            tmp_path / f"file{index}.h5", torch.rand(1, 1, 40, 36, generator=torch_generator(index)), single_coil=True
        )
    measured = KspaceFile.info.fget
    monkeypatch.setattr(KspaceFile, "info", property(lambda file: replace(measured(file), measured_columns=(4, 30))))
    parted = load_images(SubsampleData(source=str(tmp_path), slices=1, size=32))
    assert parted.kind.endswith("of which 4 of 4 files are filled with 0 at the sides")


def test_files_of_fastmri_are_parted_by_their_patients(tmp_path):
    for index in range(8):
        image = torch.rand(3, 1, 40, 36, generator=torch_generator(index))
        write(tmp_path / f"file{index}.h5", image, single_coil=True)
        with h5py.File(tmp_path / f"file{index}.h5", "r+") as file:
            file.attrs["patient_id"] = f"patient {index // 2}"
    parted = load_images(SubsampleData(source=str(tmp_path), slices=1, size=32))
    test = parted.open_test()
    assert not {*parted.training.subjects} & {*test.subjects}
    assert {*test.subjects} <= {f"patient {index}" for index in range(4)}
    assert parted.unknown == 0
    assert test.shape == (32, 32)
    # The middle slice, and the centre of its image.
    assert all(name.startswith("file") for name in test.names)
    whole = torch.rand(3, 1, 40, 36, generator=torch_generator(int(Path(test.names[0]).stem[4:])))
    torch.testing.assert_close(ifft2c(test.kspace[0]).real, whole[1, 0, 4:36, 2:34], rtol=1e-4, atol=1e-4)


def test_several_coils_or_a_mask_are_refused(tmp_path):
    write(tmp_path / "file.h5", torch.rand(1, 2, 32, 32))
    with pytest.raises(InputError, match="has 2 coils, and this job takes files of a single one"):
        load_images(SubsampleData(source=str(tmp_path / "file.h5")))
    write(tmp_path / "file.h5", torch.rand(1, 1, 32, 32), (torch.arange(32) - 16).abs() < 10)
    with pytest.raises(InputError, match="is undersampled by its mask"):
        load_images(SubsampleData(source=str(tmp_path / "file.h5")))
    for number in range(4):
        (tmp_path / "some").mkdir(exist_ok=True)
        write(tmp_path / "some" / f"file{number}.h5", torch.rand(1, 1, 32, 32), single_coil=True)
        with h5py.File(tmp_path / "some" / f"file{number}.h5", "r+") as file:
            file["kspace"][..., ::4] = 0
    with pytest.raises(InputError, match="is undersampled already, and nothing tells what that leaves out"):
        load_images(SubsampleData(source=str(tmp_path / "some"), slices=1, size=32))


def test_of_an_archive_the_first_stack_alone_is_unpacked(tmp_path, monkeypatch):
    images = np.random.default_rng(0).random((6, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "a.npz", names=np.zeros(3), large=np.zeros((2, 10, 10, 10)), images=images, later=images + 1)
    data = SubsampleData(source=str(tmp_path / "a.npz"), slices=1, size=32, volumes=6)
    assert load_images(data).training.shape == (32, 32)
    monkeypatch.setattr("voxelwave.jobs.common.magnitude_images.MOST_STACKED", 1000)
    with pytest.raises(InputError, match=r"'images.npy' holds 6,144 values, more than is read: 1,000"):
        load_images(data)


def test_the_test_is_opened_with_one_set_of_weights(tmp_path):
    open_test = load_images(phantoms()).open_test
    for _ in range(2):
        assert len(open_once(tmp_path, "weights a", open_test).names) == 2
    with pytest.raises(InputError, match="the test was opened with other weights"):
        open_once(tmp_path, "weights b", open_test)
    (tmp_path / "test_opened.json").write_text("[]")
    with pytest.raises(InputError, match="cannot be read"):
        open_once(tmp_path, "weights a", open_test)
